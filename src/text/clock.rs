//! The date and time that a chat template may ask for.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const SECONDS_PER_DAY: u64 = 86_400;

/// A moment, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 0, a Sunday.
    weekday: usize,
    /// Since midnight.
    second: u64,
}

pub(super) fn now() -> Moment {
    // A clock before 1970 is wrong; so is then this.
    Moment::since_1970(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

impl Moment {
    fn since_1970(seconds: u64) -> Self {
        let days = seconds / SECONDS_PER_DAY;
        let weekday = ((days + 4) % 7) as usize; // 1970 began on a Thursday
        let (mut year, mut day) = (1970, days);
        while day >= days_of_year(year) {
            day -= days_of_year(year);
            year += 1;
        }
        let mut month = 0;
        while day >= days_of_month(year, month) {
            day -= days_of_month(year, month);
            month += 1;
        }
        Moment { year, month, day: day + 1, weekday, second: seconds % SECONDS_PER_DAY }
    }

    /// The moment by a format of C's `strftime`; an error names a directive
    /// that is not known.
    pub fn format(&self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            match (character, characters.clone().next()) {
                ('%', Some(directive)) => {
                    characters.next();
                    self.write(directive, &mut out)
                        .ok_or_else(|| format!("strftime_now does not know %{directive}"))?;
                }
                _ => out.push(character),
            }
        }
        Ok(out)
    }

    fn write(&self, directive: char, out: &mut String) -> Option<()> {
        let [hour, minute, second] = [self.second / 3600, self.second / 60 % 60, self.second % 60];
        let (month, weekday) = (MONTHS.get(self.month)?, WEEKDAYS.get(self.weekday)?);
        match directive {
            'Y' => write!(out, "{}", self.year),
            'y' => write!(out, "{:02}", self.year % 100),
            'm' => write!(out, "{:02}", self.month + 1),
            'B' => write!(out, "{month}"),
            'b' | 'h' => write!(out, "{}", month.get(..3)?),
            'd' => write!(out, "{:02}", self.day),
            'e' => write!(out, "{:2}", self.day),
            'A' => write!(out, "{weekday}"),
            'a' => write!(out, "{}", weekday.get(..3)?),
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{:02}", (hour + 11) % 12 + 1),
            'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            'M' => write!(out, "{minute:02}"),
            'S' => write!(out, "{second:02}"),
            'F' => write!(out, "{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            'Z' => write!(out, "UTC"),
            '%' => write!(out, "%"),
            _ => return None,
        }
        .ok()
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_of_month(year: u64, month: usize) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |seconds| Moment::since_1970(seconds).format("%A %F %T").unwrap();
        assert_eq!(date(0), "Thursday 1970-01-01 00:00:00");
        assert_eq!(date(951_782_399), "Monday 2000-02-28 23:59:59");
        assert_eq!(date(951_782_400), "Tuesday 2000-02-29 00:00:00");
        assert_eq!(date(1_735_689_599), "Tuesday 2024-12-31 23:59:59");
        assert_eq!(date(4_107_542_400), "Monday 2100-03-01 00:00:00");
    }

    #[test]
    fn directives_are_those_of_strftime() {
        let moment = Moment::since_1970(1_721_999_105); // 2024-07-26 13:05:05
        assert_eq!(moment.format("%d %b %Y, %I:%M %p").unwrap(), "26 Jul 2024, 01:05 PM");
        assert_eq!(moment.format("%a %e %B %y 100%% %").unwrap(), "Fri 26 July 24 100% %");
        assert!(moment.format("%k").unwrap_err().contains("%k"));
    }
}
