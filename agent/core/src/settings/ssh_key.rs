// SPDX-License-Identifier: Apache-2.0
//! One SSH public key, read whole: what passes here is what sshd reads from `authorized_keys` (OpenSSH's `sshkey_read`;
//! RFC 4253 section 6.6, RFC 5656, RFC 8709, PROTOCOL.u2f). It is the only way into a node, so a key that sshd would pass
//! over in silence must be refused here, aloud.
//!
//! The `ssh-key` crate was looked at: it takes RSA of any size and points that lie on no curve, so half of this would be
//! needed around it.

use data_encoding::BASE64;
use ed25519_dalek::VerifyingKey;

use super::curve::Curve;
use super::fields::{Refusal, refuse};
use super::{formats, odd};

/// Longer than a line with the largest RSA key that sshd takes, and a comment.
const MAX_LINE: usize = 8192;
/// sshd takes no RSA key below (SSH_RSA_MINIMUM_MODULUS_SIZE, RequiredRSASize).
const MIN_RSA_BITS: usize = 1024;
/// OpenSSH reads no larger number (SSHBUF_MAX_BIGNUM).
const MAX_RSA_BITS: usize = 16_384;
const ED25519: &str = "ssh-ed25519";
const ED25519_BYTES: usize = 32;

const COPY_AGAIN: &str = "copy the whole line of the `.pub` file again; it is one line, however long";
const NEW_KEY: &str = "make one with `ssh-keygen -t ed25519`";

/// What stands in a key behind its type.
#[derive(Clone, Copy)]
enum Body {
    Ed25519,
    Rsa,
    Ecdsa(Curve),
}

/// Type, body, and whether the key lives in a security key, which adds the name of its application.
const KINDS: &[(&str, Body, bool)] = &[
    (ED25519, Body::Ed25519, false),
    ("ssh-rsa", Body::Rsa, false),
    ("ecdsa-sha2-nistp256", Body::Ecdsa(Curve::P256), false),
    ("ecdsa-sha2-nistp384", Body::Ecdsa(Curve::P384), false),
    ("ecdsa-sha2-nistp521", Body::Ecdsa(Curve::P521), false),
    ("sk-ssh-ed25519@openssh.com", Body::Ed25519, true),
    ("sk-ecdsa-sha2-nistp256@openssh.com", Body::Ecdsa(Curve::P256), true),
];

/// Types that nobody logs in with: how a type begins or ends, what it is, what to do.
const OTHER_KINDS: &[(&str, &str, &str)] = &[
    ("ssh-dss", "DSA keys are obsolete, sshd takes none", NEW_KEY),
    (
        "-cert-v01@openssh.com",
        "this is an SSH certificate, not a public key",
        "paste the `.pub` file whose name does not end in `-cert.pub`",
    ),
    (
        "rsa-sha2-",
        "this is the name of a signature, not of a key",
        "write `ssh-rsa` in front, as in the `.pub` file",
    ),
    ("SHA256:", "this is the fingerprint of a key", COPY_AGAIN),
    ("MD5:", "this is the fingerprint of a key", COPY_AGAIN),
    ("~/", "this is the name of a file", "paste the content of that file"),
    (".pub", "this is the name of a file", "paste the content of that file"),
    // How the body of every key begins: the length of a type shorter than 256 characters.
    ("AAAA", "the type of the key is missing in front of it", COPY_AGAIN),
];

/// A public key that sshd takes.
#[derive(Debug)]
pub(super) struct SshKey {
    /// Type, body and comment with one space between.
    pub(super) line: String,
    kind: &'static str,
    blob: Vec<u8>,
}

impl SshKey {
    /// Reads a line of a `.pub` file. Places in refusals are offsets in `text`.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let start = text.len() - odd::trim_start(text).len();
        let line = odd::trim(text);
        let shifted = |refusal: Refusal| refusal.moved(start);
        if line.is_empty() {
            return refuse(
                "there is no key in this text",
                "paste one line of a `.pub` file, or remove the text",
            );
        }
        if let Some(refusal) = formats::foreign(line) {
            return Err(shifted(refusal));
        }
        if line.len() > MAX_LINE {
            return refuse("SSH key is too long", "write one key per text, each in one line");
        }
        if line.contains(['\n', '\r']) {
            return refuse("SSH key has line breaks", "write one key per text, each in one line");
        }
        if let Some(at) = line.find(|c: char| c.is_control() && c != '\t') {
            return Err(Refusal::at(start + at, "SSH key has a control character", COPY_AGAIN));
        }
        let (word, rest) = split(line);
        let Some((kind, body, in_hardware)) = KINDS.iter().find(|(kind, ..)| *kind == word) else {
            return Err(odd::first(word).map_or_else(|| not_a_key(line, word), shifted));
        };
        let (encoded, comment) = split(rest);
        let encoded_at = start + line.len() - rest.len();
        if let Some(refusal) = odd::first(encoded) {
            return Err(refusal.moved(encoded_at));
        }
        let damaged = |damage: Damage| match damage {
            Damage::Weak(bits) => Refusal::new(
                format!("RSA key has {bits} bits; sshd takes none below {MIN_RSA_BITS}"),
                NEW_KEY,
            ),
            Damage::Wrong(what) => Refusal::new(format!("SSH key is damaged: {what}"), COPY_AGAIN),
        };
        let blob = decode(encoded).map_err(damaged)?;
        check(&blob, kind, *body, *in_hardware).map_err(damaged)?;
        let mut line = format!("{kind} {encoded}");
        if !comment.is_empty() {
            line.push(' ');
            line.push_str(&comment.replace('\t', " "));
        }
        Ok(Self { line, kind, blob })
    }

    /// Reads a key that signs commands to the cluster: Ed25519, and a point that can sign for one person only.
    pub(super) fn parse_admin(text: &str) -> Result<Self, Refusal> {
        let key = Self::parse(text)?;
        if key.kind != ED25519 {
            return refuse(format!("admin keys must be of type `{ED25519}`"), NEW_KEY);
        }
        let point = key.blob.last_chunk::<ED25519_BYTES>();
        if point.and_then(|point| VerifyingKey::from_bytes(point).ok()).is_none_or(|key| key.is_weak()) {
            return refuse("SSH key is damaged: it can verify no signature", COPY_AGAIN);
        }
        Ok(key)
    }

    /// Whether both are the same key, whatever their comments say.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.blob == other.blob
    }
}

/// The first word, and the rest without the blanks in front.
fn split(text: &str) -> (&str, &str) {
    let end = text.find([' ', '\t']).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start_matches([' ', '\t']))
}

/// What a line that does not begin with a type of key is.
fn not_a_key(line: &str, word: &str) -> Refusal {
    for (part, message, fix) in OTHER_KINDS {
        if word.starts_with(part)
            || word.ends_with(part)
            || (word.parse::<u32>().is_ok() && split(line).1.starts_with(part))
        {
            return Refusal::new(*message, *fix);
        }
    }
    if let Some(kind) = behind_options(line) {
        return Refusal::new(
            "SSH key has options in front, which are not supported",
            format!("remove what stands in front of `{kind}`"),
        );
    }
    Refusal::new(
        "this is not an SSH public key",
        "paste one line of a `.pub` file, like `ssh-ed25519 AAAA… you@laptop`; options in front are not allowed",
    )
}

/// The type of a key that stands behind sshd's options: words with quoted parts, up to the first blank outside quotes.
fn behind_options(line: &str) -> Option<&str> {
    let mut quoted = false;
    let mut escaped = false;
    let end = line.find(|c: char| {
        match c {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => return true,
            _ => {}
        }
        escaped = c == '\\';
        false
    })?;
    let kind = split(line[end..].trim_start_matches([' ', '\t'])).0;
    let known = KINDS.iter().any(|(known, ..)| *known == kind)
        || kind == "ssh-dss"
        || kind.ends_with("-cert-v01@openssh.com");
    known.then_some(kind)
}

/// Why a key of a known type is none.
#[derive(Debug, PartialEq, Eq)]
enum Damage {
    /// An RSA key of so many bits.
    Weak(usize),
    /// Anything else.
    Wrong(String),
}

impl Damage {
    fn wrong<T>(what: impl Into<String>) -> Result<T, Self> {
        Err(Self::Wrong(what.into()))
    }
}

fn decode(encoded: &str) -> Result<Vec<u8>, Damage> {
    if encoded.is_empty() {
        return Damage::wrong("nothing stands behind its type");
    }
    let in_keys = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    if let Some((n, c)) = encoded.chars().enumerate().find(|(_, c)| !in_keys(*c)) {
        return Damage::wrong(format!("character {} of its body, `{c}`, stands in no key", n + 1));
    }
    // The decoder would take two padded texts, one after the other.
    if encoded.trim_end_matches('=').contains('=') {
        return Damage::wrong("`=` stands only at the end of a key");
    }
    BASE64.decode(encoded.as_bytes()).or_else(|_| Damage::wrong("it is cut, or its end was changed"))
}

/// Reads all of `blob` as a key of that kind.
fn check(blob: &[u8], kind: &str, body: Body, in_hardware: bool) -> Result<(), Damage> {
    let mut rest = Fields(blob);
    let said = rest.string()?;
    if said != kind.as_bytes() {
        return match KINDS.iter().find(|(other, ..)| other.as_bytes() == said) {
            Some((other, ..)) => Damage::wrong(format!("its line says `{kind}`, its body `{other}`")),
            None => Damage::wrong(format!("its line says `{kind}`, its body something else")),
        };
    }
    match body {
        Body::Ed25519 => {
            let length = rest.string()?.len();
            if length != ED25519_BYTES {
                return Damage::wrong(format!("its point has {length} bytes instead of {ED25519_BYTES}"));
            }
        }
        Body::Rsa => {
            rest.number()?;
            let bits = rest.number()?;
            if bits < MIN_RSA_BITS {
                return Err(Damage::Weak(bits));
            }
        }
        Body::Ecdsa(curve) => {
            if rest.string()? != curve.name().as_bytes() {
                return Damage::wrong(format!("its type says curve `{}`, its body another", curve.name()));
            }
            if !curve.has(rest.string()?) {
                return Damage::wrong(format!("its point does not lie on curve `{}`", curve.name()));
            }
        }
    }
    if in_hardware {
        let application = rest.string()?;
        // OpenSSH reads it as a C string, which may carry its end.
        if application.strip_suffix(&[0]).unwrap_or(application).contains(&0) {
            return Damage::wrong("the name of its application has a zero byte");
        }
    }
    match rest.0.len() {
        0 => Ok(()),
        more => Damage::wrong(format!("{more} bytes too many stand at its end")),
    }
}

/// Fields of RFC 4251, section 5: each behind its length in four bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn string(&mut self) -> Result<&'a [u8], Damage> {
        let cut = || Damage::Wrong("it is cut, a part of it is missing".to_owned());
        let (length, rest) = self.0.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| cut())?;
        let (field, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        self.0 = rest;
        Ok(field)
    }

    /// How many bits a number has.
    fn number(&mut self) -> Result<usize, Damage> {
        let bytes = self.string()?;
        if bytes.first().is_some_and(|first| first & 0x80 != 0) {
            return Damage::wrong("a number in it is negative");
        }
        if bytes.len() > MAX_RSA_BITS / 8 + 1 || bytes.len() > MAX_RSA_BITS / 8 && bytes[0] != 0 {
            return Damage::wrong(format!("a number in it has more than {MAX_RSA_BITS} bits"));
        }
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let (bytes, first) = (&bytes[zeros..], bytes.get(zeros));
        let bits = bytes.len() * 8 - first.map_or(0, |first| first.leading_zeros() as usize);
        Ok(bits)
    }
}
