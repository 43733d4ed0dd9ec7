// SPDX-License-Identifier: Apache-2.0
//! SSH keys of every type, whole and damaged; files of keys; and where mistakes in cluster.toml are.

use data_encoding::BASE64;

use super::ssh_key::SshKey;
use super::*;

/// Made by `ssh-keygen`, one of each type and size that it makes and sshd takes.
const KEYS: &[&str] = &[
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICruLET1Ovd0eQHOrCKQMLvM+6OEIcr1hzwyAYprmPRi me@laptop",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDHT2aZcE/BS+j+I2U+sQlbzY3IzPCuDAYmbXXCZZ28sD8OnCqlwVg3hSGBBn8sOVco1hh9xojXWKvWFgiAAB5OvIln0/v9+JsVCSp3cnMOZD131VOLxMAeds01Hlxq8hYf5gyODLTqVo7TAY3jVeOo6IQS4O8/tbdWuRzUPMkF4Q== me@laptop",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAFs28rATKMFiOpJMOoQ7ti8Y7qqPe9uDP8Z/VZEf5kI2PgBiZvtGWuZUoi3J6AAbaZYIskqSUM2zMXsXoR6KM1oilmBcpEHH/kKr+fJaCMjMhTngs2WYhHB1zmU23jqG0JiE8G7BBrcnPIBFfqVniMZbD3BDKCDFM5V/OH/SPfdssVVYvKsoZpp5mqXMoRdbwjftdxSgOlMBbeNaSrfkAU3pUKVnUWPsWZQ1q+wc5JAk1RfpSE+rG9/8wmYD5EuYyRW1cnMHJOwJLf0rJuo+PMPDjeY1XEyqpij2lv34icYihVb87VcnsQREYmU7wq/QVHdDIvGPlBs282Riw0qwav0= me@laptop",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCeUsJdMZvrpscbP8X5Vw5fF8z7eyxq9RE6ajS1PwkayquV4Y283Pi8Q4YC70P9oeZ0CUSYwF4UgGWXtbT33GBxw/FF98UaqIfCJk8JWMiZ7OF8OaHMfhe7mFHJEQkto0rJkxR08uHrcW18dqQVT0n3mHSHh0mHY+L6mHKZDJGBvssEfYIlt/VQAA8Ex9ZOc2K0A6jJodNZVqfDnZCLZ8HfcmhqLSC6wtyhyEQfAA1UBitDZAf+QVBT89kfcOPgPgekMfv3rg+BEYNs7Y0+FNtns+e2yCixpi87o0K+sW8RUq7Y//zR57jyWrO/9mc7fajH2gXxsRGxbqyRo6R6cUX9 me@laptop",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQDYCMucWr81Hry+EA3ndk2ojxaoull4nTQGGqGf9L9Ox2p16x+ZXdP/VmKm6Ft3Zfe8jGLNzbIPkTPso3wBxIy7FUTaEQEUIb2GWRMat3FFuoH98lO8Fmmqb3uKMTISiUxoO4uxa4SjEOwSqAgFdr5D9GYFzrecqAYU+Uzq3NQLKhp8maSu9jED+w2M6G2lYBBgK+ROsa8H3IVl3lTbpvkeFO5KuEuiZkmZL22j11ZFxjjaT88sAIYNJnqL8ON70ynA0d1RfP0aAeZ7MB8VUV4lec2h2O09rrGICbE+4Pb63ZqPlPnrYInryW1CJ5PG2lFxfDS/khIpogWRJT+HNXwwgP30CDM4XDT3U5BwWf6yRWX6KF088rI4vHUnd8gcf7EVLdN/GO55BktqcTxPQ3AZGszM/J9dPJP9XkVaHoiiZAgk6BLjcan5xCiRBERjyYtEZpCm90sijsuXrizopvJHt/dEUVP2GH3U50cv2MQKH7nDO6SSkv4WGiPqGXpWLss= me@laptop",
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBDgk1FsvA71A6iaOvgT6MmmlBFmEAUWkXSwAIhL7m6tpucaS6HmN96KZklGm8inCKJlA+ZGC0ubA9UULvHDfy9A= me@laptop",
    "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBKFQl1bgsDE+TV6/QLrAYxqRnnVujvy+qG6idtgHaLmROzxu3BOi0F/uwS2Nv710lvDcEfl/lzW6wLZpQA38gXj7+zhMNfO4SaJqH7NciUZeeKWA10W7hD0CBmhYph0W/g== me@laptop",
    "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAFdc3EsTyXlnu3rTPDcnSd7NeQzr6nXTlCpFjoZ49hisL+sFn5ssXMQU792YsNow6qfdjQcIkbKUHiEwwDPAZSmmQFaGReCliqp7Mzt6/hnOTjx+7NR+p5OUZRmhQevXXSMGQzrc5IJLSHn9nz5qon9J+viYhxjUB+RVa2lq+NMUXfpgA== me@laptop",
];
const ED25519: &str = KEYS[0];

fn blob(key: &str) -> Vec<u8> {
    BASE64.decode(key.split(' ').nth(1).unwrap().as_bytes()).unwrap()
}

/// A key line of fields.
fn line(kind: &str, fields: &[&[u8]]) -> String {
    let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let blob: Vec<u8> = [kind.as_bytes()].iter().chain(fields).flat_map(|bytes| field(bytes)).collect();
    format!("{kind} {} me@laptop", BASE64.encode(&blob))
}

/// The field of a key after its type and `skip` more.
fn field(key: &str, skip: usize) -> Vec<u8> {
    let blob = blob(key);
    let mut rest = &blob[..];
    let mut fields = std::iter::from_fn(|| {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (bytes, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        rest = after;
        Some(bytes.to_vec())
    });
    fields.nth(skip + 1).unwrap()
}

/// Those keys, and the same in security keys.
fn all_keys() -> Vec<String> {
    let mut keys: Vec<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    for application in ["ssh:", "", "ssh:work"] {
        let application = application.as_bytes();
        keys.push(line("sk-ssh-ed25519@openssh.com", &[&field(KEYS[0], 0), application]));
        keys.push(line(
            "sk-ecdsa-sha2-nistp256@openssh.com",
            &[b"nistp256", &field(KEYS[5], 1), application],
        ));
    }
    keys
}

fn accepted(text: &str) -> bool {
    SshKey::parse(text).is_ok()
}

fn refusal(text: &str) -> String {
    let refusal = SshKey::parse(text).expect_err(text);
    format!("{}; {}", refusal.message, refusal.fix)
}

#[test]
fn a_whole_key_of_every_type_is_taken_with_and_without_comment() {
    for key in all_keys() {
        let bare = key.rsplit_once(' ').unwrap().0;
        for text in [key.as_str(), bare] {
            assert_eq!(SshKey::parse(text).unwrap().line, text);
        }
        for (text, line) in [
            (format!(" \t{key} \r\n"), key.clone()),
            (bare.replacen(' ', "\t  ", 1), bare.to_owned()),
            (format!("\u{feff}{key}\u{a0}\u{200b}"), key.clone()),
            (format!("{bare}  Jörg’s laptop,\tat home"), format!("{bare} Jörg’s laptop, at home")),
        ] {
            assert_eq!(SshKey::parse(&text).unwrap().line, line, "{text:?}");
        }
    }
}

#[test]
fn a_key_cut_anywhere_or_with_more_behind_is_refused() {
    for key in all_keys() {
        let (kind, blob) = (key.split(' ').next().unwrap(), blob(&key));
        for cut in 0..blob.len() {
            // As if a program had padded what was left.
            let text = format!("{kind} {} me", BASE64.encode(&blob[..cut]));
            assert!(refusal(&text).contains("damaged"), "{kind} with {cut} of {} bytes", blob.len());
        }
        let encoded = BASE64.encode(&blob);
        for cut in 0..encoded.len() {
            assert!(!accepted(&format!("{kind} {}", &encoded[..cut])), "{kind} with {cut} characters");
        }
        for more in [&[0][..], &[0, 0, 0], &[0; 4], &[0, 0, 0, 1, 7], b"more", &blob] {
            let text = format!("{kind} {}", BASE64.encode(&[&blob[..], more].concat()));
            assert!(refusal(&text).contains("at its end"), "{}", refusal(&text));
        }
    }
}

#[test]
fn base64_must_be_exact() {
    for key in all_keys() {
        let (kind, encoded) = (key.split(' ').next().unwrap(), key.split(' ').nth(1).unwrap());
        for changed in [
            format!("{encoded}="),
            format!("{encoded}===="),
            format!("{encoded}A"),
            format!("{encoded}AAAA"),
            format!("{encoded}{encoded}"),
            encoded.replacen('A', "-", 1),
            encoded.replacen('A', "_", 1),
            encoded.replacen('A', "…", 1),
            format!("\"{encoded}\""),
            format!("{encoded},"),
        ] {
            assert!(!accepted(&format!("{kind} {changed} me")), "{changed}");
        }
        let bare = encoded.trim_end_matches('=');
        assert_eq!(accepted(&format!("{kind} {bare}")), bare == encoded, "{kind} without padding");
    }
    // The last character of a padded key has bits that belong to no byte.
    let padded = KEYS.iter().find(|key| key.contains("= me") && !key.contains("==")).unwrap();
    let (before, after) = padded.split_once('=').unwrap();
    let (before, last) = before.split_at(before.len() - 1);
    let next = char::from(last.as_bytes()[0] + 1);
    assert!(accepted(padded) && !accepted(&format!("{before}{next}={after}")), "{last} and {next}");
}

#[test]
fn line_and_body_must_be_of_one_type_and_curve() {
    for key in all_keys() {
        for other in all_keys() {
            let (kind, other_kind) = (key.split(' ').next().unwrap(), other.split(' ').next().unwrap());
            if kind != other_kind {
                let text = format!("{kind} {}", BASE64.encode(&blob(&other)));
                assert!(refusal(&text).contains(other_kind), "{}", refusal(&text));
            }
        }
    }
    for (kind, point) in [
        ("ecdsa-sha2-nistp256", field(KEYS[5], 1)),
        ("ecdsa-sha2-nistp384", field(KEYS[6], 1)),
        ("ecdsa-sha2-nistp521", field(KEYS[7], 1)),
    ] {
        let curve = &kind[kind.len() - 8..];
        for name in ["nistp256", "nistp384", "nistp521", "nistp224", "", "Nistp256"] {
            assert_eq!(accepted(&line(kind, &[name.as_bytes(), &point])), name == curve, "{kind}, {name}");
        }
        for form in [0, 2, 3, 4, 5, 6, 7] {
            let half = [&[form][..], &point[1..=point.len() / 2]].concat();
            assert!(!accepted(&line(kind, &[curve.as_bytes(), &half])), "{kind}, half a point, form {form}");
            let whole = [&[form][..], &point[1..]].concat();
            assert_eq!(accepted(&line(kind, &[curve.as_bytes(), &whole])), form == 4, "{kind}, form {form}");
        }
        // One changed bit leaves the curve, whichever it is.
        for at in 1..point.len() {
            let mut off = point.clone();
            off[at] ^= 1 << (at % 8);
            assert!(refusal(&line(kind, &[curve.as_bytes(), &off])).contains("curve"), "{kind}, byte {at}");
        }
        for nothing in [vec![], vec![0], vec![4], [vec![4], vec![0; point.len() - 1]].concat()] {
            assert!(!accepted(&line(kind, &[curve.as_bytes(), &nothing])), "{kind}, {nothing:?}");
        }
    }
    for length in [0, 31, 33, 64] {
        for (kind, more) in [("ssh-ed25519", &[][..]), ("sk-ssh-ed25519@openssh.com", &[b"ssh:".as_slice()])]
        {
            let point = vec![1; length];
            let text = line(kind, &[&[&point[..]], more].concat());
            assert!(refusal(&text).contains(&format!("{length} bytes instead of 32")), "{}", refusal(&text));
        }
    }
}

#[test]
fn rsa_is_taken_in_the_sizes_that_sshd_takes() {
    let number = |bits: usize| {
        let mut bytes = vec![0xa5; bits.div_ceil(8)];
        bytes[0] = 1 << ((bits - 1) % 8);
        if bytes[0] & 0x80 != 0 {
            bytes.insert(0, 0);
        }
        bytes
    };
    let rsa = |bits: usize| line("ssh-rsa", &[&[1, 0, 1], &number(bits)]);
    for bits in [1024, 1025, 1031, 1032, 2047, 2049, 3071, 4095, 7777, 16_383, 16_384] {
        assert!(accepted(&rsa(bits)), "{bits}");
    }
    for bits in [1, 512, 768, 1016, 1023] {
        assert!(
            refusal(&rsa(bits)).contains(&format!("has {bits} bits; sshd takes none below 1024")),
            "{bits}"
        );
    }
    for bits in [16_385, 16_392, 20_000] {
        assert!(refusal(&rsa(bits)).contains("16384"), "{bits}: {}", refusal(&rsa(bits)));
    }
    let negative = line("ssh-rsa", &[&[1, 0, 1], &[0x80; 256]]);
    assert!(refusal(&negative).contains("negative"));
    let zeros = line("ssh-rsa", &[&[1, 0, 1], &[vec![0; 5], number(2048)].concat()]);
    assert!(accepted(&zeros), "sshd drops zeros in front");
}

#[test]
fn what_is_no_key_is_named() {
    for (text, says) in [
        ("ssh-dss AAAAB3NzaC1kc3MAAACBAJxzqSYwc2MWJb83teLDTR4qHzoXs me".to_owned(), "DSA keys are obsolete"),
        ("ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQ me".to_owned(), "certificate"),
        ("sk-ecdsa-sha2-nistp256-cert-v01@openssh.com AAAA me".to_owned(), "certificate"),
        ("rsa-sha2-512 AAAAB3NzaC1yc2E me".to_owned(), "`ssh-rsa`"),
        (ED25519.replace("ssh-ed25519 ", ""), "type of the key is missing"),
        ("~/.ssh/id_ed25519.pub".to_owned(), "name of a file"),
        ("id_rsa.pub".to_owned(), "name of a file"),
        ("SHA256:abcdefghijklmnop me (ED25519)".to_owned(), "fingerprint"),
        ("256 SHA256:abcdefghijklmnop me (ED25519)".to_owned(), "fingerprint"),
        ("ssh-ed25519".to_owned(), "nothing stands behind its type"),
        ("ssh-ed25519   ".to_owned(), "nothing stands behind its type"),
        ("ssh-ed448 AAAACXNzaC1lZDQ0OA me".to_owned(), "not an SSH public key"),
        ("SSH-ED25519 AAAAC3NzaC1lZDI1NTE5 me".to_owned(), "not an SSH public key"),
        (String::new(), "no key"),
        (" \u{feff}\t".to_owned(), "no key"),
        (ED25519.replace(" me", "\nme"), "line breaks"),
        (ED25519.replace("AAAA", "AAAA\u{1b}"), "control character"),
        (format!("{ED25519} {}", "x".repeat(8192)), "too long"),
        ("PuTTY-User-Key-File-3: ssh-ed25519".to_owned(), "PuTTY"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n".to_owned(), "private key"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n".to_owned(), "RFC 4716"),
        ("ssh-ed25519\u{a0}AAAAC3NzaC1lZDI1NTE5 me".to_owned(), "non-breaking space (U+00A0)"),
        ("ssh-ed\u{200b}25519 AAAAC3NzaC1lZDI1NTE5 me".to_owned(), "invisible character (U+200B)"),
        ("ssh–ed25519 AAAAC3NzaC1lZDI1NTE5 me".to_owned(), "dash `–`"),
        (format!("“{ED25519}”"), "quote `“`"),
        (ED25519.replace("NzaC1", "NzaC\u{200b}1"), "invisible character (U+200B)"),
        (ED25519.replace(" me", "\u{a0}me"), "non-breaking space (U+00A0)"),
    ] {
        assert!(refusal(&text).contains(says), "{text:?}: {}", refusal(&text));
    }
    for options in [
        "from=\"10.0.0.0/8\"",
        "no-pty,command=\"echo \\\"a b\\\"\"",
        "restrict",
        "cert-authority",
        "environment=\"A=b c\",no-pty",
        "laptop,10.0.0.1",
    ] {
        for key in all_keys() {
            let said = refusal(&format!("{options} {key}"));
            assert!(said.contains("options in front"), "{options}: {said}");
        }
    }
}

#[test]
fn an_odd_character_is_named_at_its_own_place() {
    let at = |text: &str| SshKey::parse(text).unwrap_err().at;
    assert_eq!(at("  ssh-ed25519\u{a0}AAAA"), Some(13));
    assert_eq!(at("\u{feff}ssh-ed25519  AAAA\u{200b}AA"), Some(20));
}

#[test]
fn admin_keys_are_ed25519_and_can_sign_for_one_person() {
    assert_eq!(SshKey::parse_admin(ED25519).unwrap().line, ED25519);
    for key in &all_keys()[1..] {
        assert!(SshKey::parse_admin(key).unwrap_err().message.contains("must be of type"), "{key}");
    }
    let whole = blob(ED25519);
    for cut in 0..whole.len() {
        assert!(SshKey::parse_admin(&format!("ssh-ed25519 {}", BASE64.encode(&whole[..cut]))).is_err());
    }
    let longer = format!("ssh-ed25519 {}", BASE64.encode(&[&whole[..], &[0]].concat()));
    assert!(SshKey::parse_admin(&longer).is_err());
    // The neutral element, a point of order four, and no point at all.
    for first in [1, 0, 2] {
        let mut point = [0; 32];
        point[0] = first;
        let refusal = SshKey::parse_admin(&line("ssh-ed25519", &[&point])).unwrap_err();
        assert!(refusal.message.contains("damaged"), "{first}");
    }
}

fn read(text: impl AsRef<[u8]>) -> Result<Vec<String>, Vec<Problem>> {
    read_key_file("keys", text.as_ref())
}

#[test]
fn a_file_of_keys_is_read_as_any_system_writes_it() {
    let keys = all_keys();
    let file = format!("# my laptop\n{}\n\n  # desk\n\t{} \n{}", keys[0], keys[5], keys[1]);
    let expected = [&keys[0], &keys[5], &keys[1]].map(Clone::clone);
    let utf16 = |text: &str, mark: &str| -> Vec<u8> {
        format!("{mark}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect()
    };
    let swapped = |bytes: Vec<u8>| bytes.chunks(2).flat_map(|pair| [pair[1], pair[0]]).collect::<Vec<u8>>();
    for line_end in ["\n", "\r\n", "\r", "\r\r\n"] {
        let text = file.replace('\n', line_end);
        for bytes in [
            text.clone().into_bytes(),
            format!("{text}{line_end}{line_end}").into_bytes(),
            format!("\u{feff}{text}").into_bytes(),
            // Two files with marks, one behind the other.
            text.replace("# desk", "\u{feff}# desk").into_bytes(),
            utf16(&text, "\u{feff}"),
            utf16(&text, ""),
            swapped(utf16(&text, "\u{feff}")),
            swapped(utf16(&text, "")),
        ] {
            assert_eq!(read(&bytes).as_deref(), Ok(&expected[..]), "{line_end:?}");
        }
    }
    // The same key again, with another comment.
    let twice = format!("{ED25519}\n{}\n", ED25519.replace("me@laptop", "again"));
    assert_eq!(read(twice).as_deref(), Ok(&[ED25519.to_owned()][..]));
}

#[test]
fn what_is_wrong_with_a_file_of_keys_is_told_by_line() {
    for (text, line, column, says) in [
        ("", None, None, "empty"),
        ("\u{feff}\r\n \t\n", None, None, "empty"),
        ("# none\n#\n", None, None, "no SSH public key in the file"),
        ("\0\0\0\0", None, None, "not text"),
        ("\u{7f}ELF\0\0", None, None, "not text"),
        ("# mine\rssh-ed25519 AAAA me\r", Some(2), Some(1), "damaged"),
        ("\n\n  ssh-dss AAAA me\n", Some(3), Some(3), "obsolete"),
        ("# a\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\nb3Bl\n-----END", Some(2), Some(1), "private key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n", Some(1), Some(1), "PuTTY"),
        ("ssh-ed25519\u{a0}AAAA me", Some(1), Some(12), "U+00A0"),
        ("restrict ssh-ed25519 AAAA me", Some(1), Some(1), "options in front"),
        ("[ssh]\n", Some(1), Some(1), "not an SSH public key"),
    ] {
        let problems = read(text).expect_err(text);
        let first = &problems[0];
        assert_eq!((problems.len(), first.line, first.column), (1, line, column), "{first:?}");
        assert!(first.message.contains(says), "{text:?}: {first:?}");
        assert!(first.to_string().starts_with("keys") && !first.fix.is_empty(), "{first}");
    }
    // One damaged key among good ones: its owner would be left out in silence.
    let one = format!("{}\n{}\n{}\n", KEYS[0], &KEYS[1][..80], KEYS[2]);
    assert_eq!(read(one).unwrap_err()[0].line, Some(2));
    assert!(read(vec![b'#'; MAX_KEY_FILE + 1]).unwrap_err()[0].message.contains("too large"));
    assert_eq!(read("no key\n".repeat(500)).unwrap_err().len(), 8, "and no flood");
    assert_eq!(read(b"# mine\nssh-ed25519 \xfc").unwrap_err()[0].line, Some(2));
    assert!(read(b"\xff\xfea").unwrap_err()[0].message.contains("UTF-16"));
}

const JOIN_KEY: &str = "cos1-aeamw433ioq53wgyxuu3jaawseljwwkeun4azwtre46z2dicivc2do2wvc5q3cwo6qvqm";

/// A file with a mistake, and the line and column that are to be named first.
fn assert_first(text: &str, place: (u32, u32), says: &str) {
    for text in
        [text.to_owned(), text.replace('\n', "\r\n"), text.replace('\n', "\r"), format!("\u{feff}{text}")]
    {
        let problems = Settings::parse(&text).expect_err(&text);
        let first = &problems[0];
        assert_eq!((first.line, first.column), (Some(place.0), Some(place.1)), "{text:?}: {problems:#?}");
        assert!(first.message.contains(says), "{text:?}: {problems:#?}");
        assert!(!first.fix.is_empty());
    }
}

#[test]
fn the_first_mistake_named_is_where_it_was_made() {
    let (head, tail) = JOIN_KEY.split_at(40);
    let broken = |value: &str| {
        format!("[cluster]\nname = \"lab\"\njoin_key = {value}\nexpect = 3\n[ssh]\nauthorized_keys = []\n")
    };
    assert!(Settings::parse(&broken(&format!("\"{JOIN_KEY}\""))).is_ok());
    let end = 13 + u32::try_from(JOIN_KEY.len()).unwrap();
    for (value, column, says) in [
        (format!("\"{head}\n{tail}\""), 12, "not closed in its line"),
        (format!("'{head}\n{tail}'"), 12, "not closed in its line"),
        (format!("\"{head}\\\n{tail}\""), 12, "not closed in its line"),
        (format!("\"{JOIN_KEY}"), 12, "not closed in its line"),
        (format!("'{JOIN_KEY}"), 12, "not closed in its line"),
        (format!("\"{JOIN_KEY}'"), 12, "not closed in its line"),
        (format!("\"\"\"{JOIN_KEY}"), 12, "not closed"),
        (format!("'''{JOIN_KEY}\""), 12, "not closed"),
        (format!("“{JOIN_KEY}”"), 12, "quote `“`"),
        (format!("\"{JOIN_KEY}”"), end, "quote `”`"),
        (format!("“{JOIN_KEY}\""), 12, "quote `“`"),
        (format!("‘{JOIN_KEY}’"), 12, "quote `‘`"),
        (format!("\u{a0}\"{JOIN_KEY}\""), 12, "U+00A0"),
        (format!("\u{200b}\"{JOIN_KEY}\""), 12, "U+200B"),
        (format!("\"{JOIN_KEY}\"\u{a0}"), end + 1, "U+00A0"),
        (format!("\"{JOIN_KEY}\"\u{feff}"), end + 1, "U+FEFF"),
        (format!("\"{}\u{200b}{}\"", &JOIN_KEY[..20], &JOIN_KEY[20..]), 33, "U+200B"),
        (format!("\"{}\u{a0}{}\"", &JOIN_KEY[..20], &JOIN_KEY[20..]), 33, "U+00A0"),
        (format!("\"{}\"", JOIN_KEY.replace('-', "–")), 17, "dash `–`"),
        (format!("\"{head} {tail}\""), 53, "a space"),
        (format!("\"{head}\""), 12, "wrong length"),
        (JOIN_KEY.to_owned(), 12, "not valid TOML"),
        (format!("\"{head}\"{tail}\""), 54, "not valid TOML"),
    ] {
        assert_first(&broken(&value), (3, column), says);
    }
    let spaced = format!("\" {JOIN_KEY}\u{a0}\u{200b}\"");
    assert!(Settings::parse(&broken(&spaced)).is_ok(), "blanks around it are nothing");
}

#[test]
fn brackets_that_are_not_closed_are_named_where_they_were_opened() {
    let cluster = format!("[cluster]\nname = \"lab\"\njoin_key = \"{JOIN_KEY}\"\n");
    for (after, place, says) in [
        ("[ssh]\nauthorized_keys = [\n  \"a\",\n[admin]\nkeys = []\n", (5, 19), "list"),
        ("[ssh]\nauthorized_keys = [ \"a\"\n[admin]\n", (5, 19), "list"),
        ("[ssh]\nauthorized_keys = [\n", (5, 19), "list"),
        ("seeds = [\"192.0.2.7\"\nexpect = 3\n", (4, 9), "list"),
        ("[node]\nlabels = { rack = \"a1\"\n[ssh]\n", (5, 10), "table"),
        ("[node]\nlabels = { rack = \"a1\"\n", (5, 10), "table"),
        ("[node\nhostname = \"a\"\n", (4, 1), "name of this table"),
        ("[node", (4, 1), "name of this table"),
        (
            "[ssh]\nauthorized_keys = [\n  \"ssh-ed25519 AAAA\n  BBBB me\",\n  \"x\"\n]\n",
            (6, 3),
            "not closed in its line",
        ),
        ("[ssh]\nauthorized_keys = [\n  “ssh-ed25519 AAAA”,\n  “x”\n]\n", (6, 3), "quote `“`"),
        ("# “quotes” in a comment are nothing\n[ssh\n", (5, 1), "name of this table"),
        ("[node]\u{a0}\n", (4, 7), "U+00A0"),
        ("\u{a0}[node]\n", (4, 1), "U+00A0"),
        ("[node]\nhostname ＝ \"a\"\n", (5, 10), "full-width"),
        ("[node]\nhostname = \"al\u{ad}pha\"\n", (5, 15), "U+00AD"),
        ("[node]\nlabels = { rack = \"a–1\" }\n", (5, 21), "dash"),
        ("seeds = [\"192.0.2.7\u{200b}\"]\n", (4, 20), "U+200B"),
        ("[ssh]\nauthorized_keys = [\"ssh-ed25519\u{a0}AAAA\"]\n", (5, 32), "U+00A0"),
    ] {
        assert_first(&format!("{cluster}{after}"), place, says);
    }
    // Two mistakes: both are told, in the order of lines.
    let problems = Settings::parse("[cluster]\nname = “lab”\njoin_key = \"cos1\n").unwrap_err();
    assert_eq!(problems.iter().map(|one| one.line).collect::<Vec<_>>(), [Some(2), Some(3)], "{problems:?}");
}

#[test]
fn another_file_than_was_meant_is_named() {
    for (text, says) in [
        (ED25519, "an SSH public key, not a cluster.toml"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", "private key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n", "PuTTY"),
    ] {
        let problems = Settings::parse(text).unwrap_err();
        assert!(problems.len() == 1 && problems[0].message.contains(says), "{problems:?}");
        assert_eq!(problems[0].line, Some(1));
    }
    for (bytes, says) in [
        (&b"\xff\xfe[\0c\0"[..], "UTF-16"),
        (b"\xfe\xff\0[\0c", "UTF-16"),
        (b"[\0c\0l\0u\0", "UTF-16"),
        (b"\0[\0c\0l\0u", "UTF-16"),
        (&[0; 300], "not text"),
        (b"\x7fELF\x02\x01\x01\0", "not text"),
    ] {
        assert!(Settings::decode(bytes).unwrap_err().message.contains(says), "{bytes:?}");
    }
    let problem = Settings::decode(b"[cluster]\rname = \"\xfcber\"\r").unwrap_err();
    assert_eq!((problem.line, problem.column), (Some(2), Some(9)));
    assert_eq!(Settings::decode(b"\xef\xbb\xbfx").as_deref(), Ok("x"));
}

#[test]
fn a_damaged_key_in_the_file_is_named_by_line_and_reason() {
    let file = |list: &str, key: &str| {
        let cluster = format!("[cluster]\nname = \"lab\"\njoin_key = \"{JOIN_KEY}\"");
        format!("{cluster}\n{list} = [\n  \"{ED25519}\",\n  \"{key}\",\n]\n")
    };
    for list in ["[ssh]\nauthorized_keys", "[admin]\nkeys"] {
        assert!(Settings::parse(&file(list, ED25519)).is_ok());
        let encoded = BASE64.encode(&[&blob(ED25519)[..], &[0, 0, 0]].concat());
        for (key, says) in [
            (ED25519.replace("mPRi", ""), "SSH key is damaged: it is cut"),
            (format!("ssh-ed25519 {encoded} me"), "SSH key is damaged: 3 bytes too many"),
            (format!("restrict {ED25519}"), "options in front"),
            (KEYS[1].replacen("ssh-rsa", "ssh-dss", 1), "obsolete"),
        ] {
            assert_first(&file(list, &key), (7, 3), says);
        }
    }
}
