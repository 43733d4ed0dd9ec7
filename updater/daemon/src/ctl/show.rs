// SPDX-License-Identifier: Apache-2.0
//! How things look.

use std::io::{self, Write as _};

use super::{Code, Failure};
pub(crate) use crate::date::date;

/// Writes to stdout; a reader that has had enough (`| head`) is no failure.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Failed, format!("failed to print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints JSON for programs: as it came, indented for the eyes of those who write such programs.
pub(crate) fn print_json(json: &str) -> Result<(), Failure> {
    let value: serde_json::Value = serde_json::from_str(json)?;
    out(&format!("{}\n", serde_json::to_string_pretty(&value)?))
}

/// `870 B`, `12.3 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
