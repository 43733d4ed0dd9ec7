// SPDX-License-Identifier: Apache-2.0
//! A file of SSH public keys that a person names: a `.pub` file, or `authorized_keys` with comments, as any system writes it.

use super::fields::Refusal;
use super::ssh_key::SshKey;
use super::text::{NoText, decode, place, unix_lines};
use super::{Problem, formats, odd, table};

/// Largest file of SSH public keys that is read: what fits into cluster.toml at all.
pub const MAX_KEY_FILE: usize = crate::consts::MAX_CLUSTER_TOML;
/// Mistakes that are told; where there are more, the file is another one than was meant.
const MAX_TOLD: usize = 8;
const NAME_A_PUB: &str = "name a `.pub` file, like ~/.ssh/id_ed25519.pub; `ssh-keygen -t ed25519` makes one";

/// The keys in `bytes`, one line each, every one once. `name` is the file's, for problems.
///
/// # Errors
/// What is wrong, with lines; also when there is no key at all.
pub fn read(name: &str, bytes: &[u8]) -> Result<Vec<String>, Vec<Problem>> {
    let whole = |message: &str, fix: &str| Err(vec![table::problem(name, None, Refusal::new(message, fix))]);
    if bytes.len() > MAX_KEY_FILE {
        return whole("the file is too large to be one of SSH public keys", NAME_A_PUB);
    }
    let text = match decode(bytes) {
        Ok(text) => text,
        Err(NoText::Binary) => return whole("the file is not text", NAME_A_PUB),
        Err(NoText::HalfUtf16) => {
            return whole("the file is damaged UTF-16", "save it as UTF-8, or copy it again");
        }
        Err(NoText::NotUtf8(line, column)) => {
            let refusal =
                Refusal::new("the line is not UTF-8 text", "save the file as UTF-8, or copy it again");
            return Err(vec![table::problem(name, Some((line, column)), refusal)]);
        }
    };
    let text = unix_lines(&text);
    if odd::trim(&text).is_empty() {
        return whole("the file is empty", NAME_A_PUB);
    }
    if let Some(refusal) = formats::foreign(&text) {
        let at = place(&text, refusal.at.unwrap_or_default());
        return Err(vec![table::problem(name, Some(at), refusal)]);
    }
    let (mut keys, mut problems) = (Vec::<SshKey>::new(), Vec::new());
    let mut start = 0;
    for line in text.split('\n') {
        let content = odd::trim(line);
        if !content.is_empty() && !content.starts_with('#') {
            match SshKey::parse(line) {
                Ok(key) if keys.iter().any(|known| known.is_same(&key)) => {}
                Ok(key) => keys.push(key),
                Err(refusal) => {
                    let blank = line.len() - odd::trim_start(line).len();
                    let at = place(&text, start + refusal.at.unwrap_or(blank));
                    problems.push(table::problem(name, Some(at), refusal));
                    if problems.len() == MAX_TOLD {
                        break;
                    }
                }
            }
        }
        start += line.len() + 1;
    }
    match (keys.is_empty(), problems.is_empty()) {
        (_, false) => Err(problems),
        (true, true) => whole("there is no SSH public key in the file, only comments", NAME_A_PUB),
        (false, true) => Ok(keys.into_iter().map(|key| key.line).collect()),
    }
}
