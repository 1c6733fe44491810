//! Minimums at set times: the five fields of cron, strictly, and for how long each holds. It knows no
//! time zones: a clock is so many minutes ahead of UTC.

use crate::model::{Schedule, UnixMs};

/// The longest that a minimum may hold from one of its minutes on.
pub const LONGEST_SECONDS: u32 = 24 * 3600;
/// No clock is farther from UTC.
pub const OFFSET_MINUTES: i32 = 14 * 60;
const MINUTES_A_DAY: i64 = 24 * 60;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// When something happens, minute by minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// With both days given, either will do, as everywhere.
    either: bool,
}

impl Cron {
    /// Reads `MINUTE HOUR DAY MONTH WEEKDAY`: `*`, numbers, `1-5`, `*/15`, lists, and for the last two
    /// their names of three letters.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            let count = fields.len();
            return Err(format!(
                "has {count} fields, not the five MINUTE HOUR DAY MONTH WEEKDAY"
            ));
        };
        let mut weekdays = field("weekday", weekday, 0, 7, &DAYS)?;
        weekdays |= weekdays >> 7 & 1; // 7 is Sunday too.
        Ok(Self {
            minutes: field("minute", minute, 0, 59, &[])?,
            hours: field("hour", hour, 0, 23, &[])?,
            days: field("day", day, 1, 31, &[])?,
            months: field("month", month, 1, 12, &MONTHS)?,
            weekdays,
            either: *day != "*" && *weekday != "*",
        })
    }

    /// Whether it names the minute, counted from 1970.
    #[must_use]
    pub fn names(&self, minute: i64) -> bool {
        let day = minute.div_euclid(MINUTES_A_DAY);
        let of_day = minute.rem_euclid(MINUTES_A_DAY);
        let has = |set: u64, bit: i64| set >> bit & 1 == 1;
        if !has(self.minutes, of_day % 60) || !has(self.hours, of_day / 60) {
            return false;
        }
        let (month, of_month) = month_and_day(day);
        // 1970 began on a Thursday.
        let weekday = has(self.weekdays, (day + 4).rem_euclid(7));
        let monthday = has(self.days, of_month);
        has(self.months, month)
            && if self.either {
                weekday || monthday
            } else {
                weekday && monthday
            }
    }
}

/// The set of numbers that a field names, as bits.
fn field(what: &str, text: &str, least: u32, most: u32, names: &[&str]) -> Result<u64, String> {
    let number = |word: &str| -> Result<u32, String> {
        let named = names.iter().position(|n| n.eq_ignore_ascii_case(word));
        let named = named.and_then(|at| u32::try_from(at).ok());
        let number = named
            .map(|at| at + least)
            .or_else(|| word.parse().ok())
            .filter(|n| (least..=most).contains(n) && !word.starts_with('+'));
        number.ok_or_else(|| format!("`{word}` is no {what}: {least} to {most}"))
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            None => (part, 1),
            Some((range, step)) => {
                let good = step.parse().ok().filter(|s| (1..=most).contains(s));
                (
                    range,
                    good.ok_or_else(|| format!("`{step}` is no step of {what}s: 1 to {most}"))?,
                )
            }
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (least, most),
            Some((from, to)) => (number(from)?, number(to)?),
            None if part.contains('/') => (number(range)?, most),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return Err(format!(
                "`{range}` is no range of {what}s: {from} is after {to}"
            ));
        }
        let step = usize::try_from(step).unwrap_or(1);
        set = (from..=to).step_by(step).fold(set, |set, n| set | 1 << n);
    }
    Ok(set)
}

/// Month and day of the month of a day counted from 1970, in the calendar of today.
fn month_and_day(day: i64) -> (i64, i64) {
    // Days since the first of March of the year 0: leap days then come last.
    let day = day + 719_468;
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    (if month < 10 { month + 3 } else { month - 9 }, of_month)
}

/// A service's schedules, read once and looked at every second.
#[derive(Debug, Clone, Default)]
pub struct Timetable(Vec<Entry>);

#[derive(Debug, Clone, Copy)]
struct Entry {
    cron: Cron,
    for_seconds: i64,
    ahead_seconds: i64,
    min: u32,
}

impl Timetable {
    #[must_use]
    pub fn of(schedules: &[Schedule]) -> Self {
        let entry = |schedule: &Schedule| {
            // What cannot be read was refused when it was given.
            let cron = Cron::parse(&schedule.cron).ok()?;
            Some(Entry {
                cron,
                for_seconds: schedule.for_seconds.min(LONGEST_SECONDS).into(),
                ahead_seconds: i64::from(schedule.utc_offset_minutes) * 60,
                min: schedule.min,
            })
        };
        Self(schedules.iter().filter_map(entry).collect())
    }

    /// The highest of the minimums that hold at a time.
    #[must_use]
    pub fn least(&self, at: UnixMs) -> u32 {
        let holding = self.0.iter().filter(|entry| entry.holds(at));
        holding.map(|entry| entry.min).max().unwrap_or(0)
    }
}

impl Entry {
    fn holds(&self, at: UnixMs) -> bool {
        let now = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX / 2);
        let local = now + self.ahead_seconds;
        let since = local - self.for_seconds;
        // The minutes that began after `since`, the newest first.
        let mut minutes = (since.div_euclid(60) + 1..=local.div_euclid(60)).rev();
        minutes.any(|minute| self.cron.names(minute))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29, a Thursday, at midnight.
    const LEAP_DAY: i64 = 19_782 * MINUTES_A_DAY;

    fn at(days: i64, hour: i64, minute: i64) -> i64 {
        LEAP_DAY + days * MINUTES_A_DAY + hour * 60 + minute
    }

    #[test]
    fn the_five_fields_name_minutes() {
        let table: &[(&str, i64, bool)] = &[
            ("* * * * *", at(0, 0, 0), true),
            ("30 9 * * *", at(0, 9, 30), true),
            ("30 9 * * *", at(0, 9, 31), false),
            ("*/15 * * * *", at(0, 3, 45), true),
            ("*/15 * * * *", at(0, 3, 46), false),
            ("5/20 * * * *", at(0, 3, 45), true),
            ("5/20 * * * *", at(0, 3, 20), false),
            ("0 8-18/2 * * 1-5", at(0, 10, 0), true),
            ("0 8-18/2 * * 1-5", at(2, 10, 0), false), // A Saturday.
            ("0 0 29 2 *", at(0, 0, 0), true),
            ("0 0 1 3 *", at(1, 0, 0), true),
            ("0 0 31 12 *", at(306, 0, 0), true),
            ("0 0 * feb thu", at(0, 0, 0), true),
            ("0 0 * * sun", at(3, 0, 0), true),
            ("0 0 * * 7", at(3, 0, 0), true),
            ("0 0 * * 5-7", at(3, 0, 0), true),
            ("0 0 1 * thu", at(0, 0, 0), true), // Either day will do.
            ("0 0 1 * thu", at(1, 0, 0), true),
            ("0 0 1 * thu", at(2, 0, 0), false),
            ("0,30 1,2 * * *", at(0, 2, 30), true),
        ];
        for (cron, minute, named) in table {
            let read = Cron::parse(cron).unwrap();
            assert_eq!(read.names(*minute), *named, "{cron} at {minute}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, says) in [
            ("", "has 0 fields"),
            ("* * * *", "has 4 fields"),
            ("60 * * * *", "`60` is no minute: 0 to 59"),
            ("* 24 * * *", "`24` is no hour"),
            ("* * 0 * *", "`0` is no day"),
            ("* * * 13 *", "`13` is no month"),
            ("* * * * 8", "`8` is no weekday"),
            ("* * * mai *", "`mai` is no month"),
            ("mon * * * *", "`mon` is no minute"),
            ("*/0 * * * *", "`0` is no step"),
            ("5-1 * * * *", "5 is after 1"),
            ("1- * * * *", "`` is no minute"),
            ("-1 * * * *", "`` is no minute"),
            ("+1 * * * *", "`+1` is no minute"),
            ("1,,2 * * * *", "`` is no minute"),
            ("@daily", "has 1 fields"),
        ] {
            let error = Cron::parse(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_minimum_holds_for_its_time_by_its_clock() {
        let schedule = Schedule {
            cron: "0 9 * * *".to_owned(),
            for_seconds: 3600,
            min: 3,
            utc_offset_minutes: 120,
        };
        let unix = |minute: i64| UnixMs(u64::try_from(minute * 60_000).unwrap());
        let held = |minute| Timetable::of(std::slice::from_ref(&schedule)).least(unix(minute));
        assert_eq!(held(at(0, 6, 59)), 0);
        assert_eq!(held(at(0, 7, 0)), 3, "nine o'clock there");
        assert_eq!(held(at(0, 7, 59)), 3);
        assert_eq!(held(at(0, 8, 0)), 0);
        let more = Schedule {
            cron: "*/10 * * * *".to_owned(),
            for_seconds: 60,
            min: 5,
            utc_offset_minutes: 0,
        };
        let both = [schedule, more];
        assert_eq!(
            Timetable::of(&both).least(unix(at(0, 7, 10))),
            5,
            "the highest"
        );
        assert_eq!(Timetable::of(&both).least(unix(at(0, 7, 11))), 3);
    }
}
