// SPDX-License-Identifier: Apache-2.0
//! Files that a person wrote or named, read up to a limit, and why one cannot be.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use cluster_agent_core::Problem;

/// The bytes of a file, at most one more than `limit`, so that a larger one can be told.
///
/// # Errors
/// The kernel's.
pub fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Why it cannot be read, for people.
#[must_use]
pub fn unreadable(area: &str, path: &Path, error: &io::Error) -> Problem {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            Problem::new(area, format!("there is no file `{shown}`"), "check its name and folder")
        }
        io::ErrorKind::IsADirectory => {
            Problem::new(area, format!("`{shown}` is a folder"), "a file belongs there: name the file in it")
        }
        io::ErrorKind::PermissionDenied => Problem::new(
            area,
            format!("`{shown}` may not be read by this user"),
            "use sudo, or copy it to where you may read it",
        ),
        _ => Problem::new(
            area,
            format!("`{shown}` cannot be read: {error}"),
            "its stick or disk may be damaged: read it on another machine, or write it again",
        ),
    }
}
