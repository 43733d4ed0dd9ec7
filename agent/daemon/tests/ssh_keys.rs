// SPDX-License-Identifier: Apache-2.0
//! What settings take for an SSH key is what OpenSSH takes: both are asked about the same lines. `ssh-keygen -l` reads a line with
//! the function that sshd reads `authorized_keys` with (`sshkey_read`).
#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use cluster_agent_core::read_key_file;
use data_encoding::BASE64;

/// Types and sizes that `ssh-keygen` makes.
const MADE: &[(&str, &str)] = &[
    ("ed25519", "256"),
    ("ecdsa", "256"),
    ("ecdsa", "384"),
    ("ecdsa", "521"),
    ("rsa", "1024"),
    ("rsa", "1031"),
    ("rsa", "2048"),
];

fn keygen(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("ssh-keygen").args(arguments).current_dir(dir).output().unwrap()
}

/// Type and body of fresh keys, security keys with the same points among them.
fn keys(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut keys = Vec::new();
    for (kind, bits) in MADE {
        let name = format!("{kind}-{bits}");
        let made = keygen(dir, &["-q", "-t", kind, "-b", bits, "-N", "", "-f", &name]);
        assert!(made.status.success(), "{kind} {bits}: {}", String::from_utf8_lossy(&made.stderr));
        let text = fs::read_to_string(dir.join(format!("{name}.pub"))).unwrap();
        let mut words = text.split(' ');
        keys.push((
            words.next().unwrap().to_owned(),
            BASE64.decode(words.next().unwrap().as_bytes()).unwrap(),
        ));
    }
    for (n, kind) in [(0, "sk-ssh-ed25519@openssh.com"), (1, "sk-ecdsa-sha2-nistp256@openssh.com")] {
        let (plain, body) = &keys[n];
        let fields = &body[4 + plain.len()..];
        let blob = [&field(kind.as_bytes())[..], fields, &field(b"ssh:")].concat();
        keys.push((kind.to_owned(), blob));
    }
    keys
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// Lines that may or may not be keys.
fn lines(keys: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, body) in keys {
        let encoded = BASE64.encode(body);
        lines.push(format!("{kind} {encoded}"));
        lines.push(format!("{kind}\t {encoded}"));
        lines.extend((0..encoded.len()).step_by(7).map(|cut| format!("{kind} {}", &encoded[..cut])));
        lines.extend((0..body.len()).step_by(3).map(|cut| format!("{kind} {}", BASE64.encode(&body[..cut]))));
        for more in [&[0][..], &[0; 4], &[0; 7], b"more"] {
            lines.push(format!("{kind} {}", BASE64.encode(&[&body[..], more].concat())));
        }
        lines.extend(["=", "A", "AAAA", "====", ","].map(|more| format!("{kind} {encoded}{more}")));
        lines.push(format!("{kind} {}", encoded.trim_end_matches('=')));
        for (other, _) in keys {
            lines.push(format!("{other} {encoded}"));
        }
        for at in (0..body.len()).step_by(5) {
            for bit in [0x01, 0x80] {
                let mut changed = body.clone();
                changed[at] ^= bit;
                lines.push(format!("{kind} {}", BASE64.encode(&changed)));
            }
        }
    }
    for bits in [512, 1016, 1023, 1024, 1025, 4095, 16_383, 16_384, 16_385, 16_400] {
        for zeros in [0, 1, 3] {
            let mut number = vec![0xa5; bits / 8 + usize::from(bits % 8 != 0)];
            number[0] = 1 << ((bits - 1) % 8);
            let number = [&vec![0; zeros][..], &number].concat();
            let blob = [field(b"ssh-rsa"), field(&[1, 0, 1]), field(&number)].concat();
            lines.push(format!("ssh-rsa {}", BASE64.encode(&blob)));
        }
    }
    for application in [&b""[..], b"ssh:", b"a\0", b"a\0b", b"\0"] {
        let blob = [field(b"sk-ssh-ed25519@openssh.com"), field(&[7; 32]), field(application)].concat();
        lines.push(format!("sk-ssh-ed25519@openssh.com {}", BASE64.encode(&blob)));
    }
    lines
}

#[test]
fn settings_take_the_keys_that_openssh_takes_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let lines = lines(&keys(dir.path()));
    let file: String = lines.iter().enumerate().map(|(n, line)| format!("{line} line-{n}\n")).collect();
    fs::write(dir.path().join("lines"), file).unwrap();
    let listed = keygen(dir.path(), &["-l", "-f", "lines"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let by_openssh: BTreeSet<usize> =
        listed.split_whitespace().filter_map(|word| word.strip_prefix("line-")?.parse().ok()).collect();
    assert!(
        by_openssh.len() > 100 && by_openssh.len() < lines.len() / 2,
        "{} of {}",
        by_openssh.len(),
        lines.len()
    );
    for (n, line) in lines.iter().enumerate() {
        let ours = read_key_file("keys", line.as_bytes());
        assert_eq!(ours.is_ok(), by_openssh.contains(&n), "{line}: {ours:?}");
    }
}
