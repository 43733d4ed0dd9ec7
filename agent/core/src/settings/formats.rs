// SPDX-License-Identifier: Apache-2.0
//! Files of keys in other forms than OpenSSH's one line, with the way from each to that line.

use super::fields::Refusal;
use super::odd;

const USE_PUB: &str = "use the file that ends in `.pub` (`ssh-keygen -y -f FILE > FILE.pub` makes it again), and keep this one secret";
const MAKE_NEW: &str = "make a key with `ssh-keygen -t ed25519` and use its `.pub` file";

/// How a line begins, what the file is then, and what to do. The first that fits counts.
const FORMS: &[(&str, &str, &str)] = &[
    (
        "PuTTY-User-Key-File-",
        "this is a PuTTY key (.ppk), which holds the private key",
        "open it in PuTTYgen and use the text below `Public key for pasting into OpenSSH authorized_keys file`, or \
         `puttygen FILE.ppk -O public-openssh -o FILE.pub`; keep this one secret",
    ),
    ("SSH PRIVATE KEY FILE FORMAT", "this is a private key of SSH version 1", MAKE_NEW),
    (
        "---- BEGIN SSH2 PUBLIC KEY",
        "this is a public key in the form of RFC 4716 (SSH2, PuTTYgen's `Save public key`)",
        "turn it into one line with `ssh-keygen -i -f FILE > FILE.pub`, and use that",
    ),
    (
        "-----BEGIN RSA PUBLIC KEY",
        "this is a public key in PEM form",
        "turn it into one line with `ssh-keygen -i -m PEM -f FILE > FILE.pub`, and use that",
    ),
    (
        "-----BEGIN PUBLIC KEY",
        "this is a public key in PEM form (PKCS #8)",
        "turn it into one line with `ssh-keygen -i -m PKCS8 -f FILE > FILE.pub`, and use that",
    ),
    (
        "-----BEGIN PGP",
        "this is a PGP key",
        "print its SSH form with `gpg --export-ssh-key NAME > FILE.pub`, and use that",
    ),
    ("-----BEGIN CERTIFICATE", "this is an X.509 certificate, not an SSH public key", MAKE_NEW),
    ("-----BEGIN SSH SIGNATURE", "this is a signature, not an SSH public key", MAKE_NEW),
];

/// What `text` is, if it is a file of another form; the place is that of the line that says so.
pub(super) fn foreign(text: &str) -> Option<Refusal> {
    let mut offset = 0;
    for line in text.split('\n') {
        let content = odd::trim(line);
        let at = offset + line.len() - odd::trim_start(line).len();
        offset += line.len() + 1;
        if content.starts_with('-') && content.contains("PRIVATE KEY") {
            return Some(Refusal::at(at, "this is a private key", USE_PUB));
        }
        if let Some((_, message, fix)) = FORMS.iter().find(|(begins, ..)| content.starts_with(begins)) {
            return Some(Refusal::at(at, *message, *fix));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_named_at_its_line_with_the_way_out() {
        for (line, named, way) in [
            ("PuTTY-User-Key-File-3: ssh-ed25519", "PuTTY", "puttygen"),
            ("PuTTY-User-Key-File-2: ssh-rsa", "PuTTY", "PuTTYgen"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key", "`.pub`"),
            ("-----BEGIN RSA PRIVATE KEY-----", "private key", "`.pub`"),
            ("-----BEGIN EC PRIVATE KEY-----", "private key", "`.pub`"),
            ("-----BEGIN DSA PRIVATE KEY-----", "private key", "`.pub`"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "private key", "`.pub`"),
            ("-----BEGIN PRIVATE KEY-----", "private key", "`.pub`"),
            ("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----", "private key", "`.pub`"),
            ("---- BEGIN SSH2 PUBLIC KEY ----", "RFC 4716", "ssh-keygen -i -f"),
            ("-----BEGIN PUBLIC KEY-----", "PKCS #8", "-m PKCS8"),
            ("-----BEGIN RSA PUBLIC KEY-----", "PEM", "-m PEM"),
            ("-----BEGIN PGP PUBLIC KEY BLOCK-----", "PGP", "gpg"),
            ("-----BEGIN CERTIFICATE-----", "X.509", "ssh-keygen"),
        ] {
            for (before, at) in [("", 0), ("# mine\r\n  ", 10), ("\u{feff}", 3)] {
                let refusal = foreign(&format!("{before}{line}\nAAAA\n")).unwrap();
                assert!(refusal.message.contains(named) && refusal.fix.contains(way), "{refusal:?}");
                assert_eq!(refusal.at, Some(at), "{before:?}");
            }
        }
        for text in ["", "ssh-ed25519 AAAA my PRIVATE KEY", "# -----BEGIN CERTIFICATE", "[ssh]\n"] {
            assert_eq!(foreign(text), None, "{text}");
        }
    }
}
