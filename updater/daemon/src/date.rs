// SPDX-License-Identifier: Apache-2.0
//! Dates for people.

/// Seconds since 1970 as `2026-11-30 22:10` (UTC): days to a date by Howard Hinnant's `civil_from_days`.
pub(crate) fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", rest / 3600, rest % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let known = [
            (0, "1970-01-01 00:00"),
            (1_767_225_600, "2026-01-01 00:00"),
            (1_709_251_199, "2024-02-29 23:59"),
        ];
        for (seconds, text) in known {
            assert_eq!(date(seconds), text);
        }
    }
}
