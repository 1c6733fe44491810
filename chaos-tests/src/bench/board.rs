//! Where a benchmark writes down what it measured, and how people and programs read it. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::stats::{Spread, paired_ratio, spread};

/// The system all others are compared with.
pub const OURS: &str = "selvedge";

/// What is measured, and in what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
}

pub const TTFB: Metric = Metric::new("ttfb_ms", "ms");
/// The part of a start that is the container runtime's.
pub const CONTAINER: Metric = Metric::new("container_ms", "ms");
pub const STARTS: Metric = Metric::new("starts_per_s", "1/s");
/// Proportional set size: what is shared is divided among those that share it.
pub const PSS: Metric = Metric::new("pss_mb", "MB");
/// What the kernel charges to a memory cgroup: pages and its own objects.
pub const CHARGED: Metric = Metric::new("charged_mb", "MB");
/// What the machine has less of.
pub const TAKEN: Metric = Metric::new("taken_mb", "MB");
/// A start among many instances.
pub const START: Metric = Metric::new("start_ms", "ms");
/// From a name to files that may be mounted.
pub const PULL: Metric = Metric::new("pull_ms", "ms");
/// What the first start of an image waits for after the daemon was started again.
pub const VERIFY: Metric = Metric::new("verify_ms", "ms");
/// What the network carried.
pub const MOVED: Metric = Metric::new("moved_mb", "MB");
/// The same, of the image's unpacked bytes.
pub const SHARE: Metric = Metric::new("moved_pct", "%");
/// The same, of the image's packed bytes.
pub const PACKED_SHARE: Metric = Metric::new("moved_packed_pct", "%");
/// From a change to an answer that shows it.
pub const SERVES: Metric = Metric::new("serves_ms", "ms");
pub const BYTES: Metric = Metric::new("bytes_each", "B");
pub const RPS: Metric = Metric::new("rps", "1/s");
pub const WRITES: Metric = Metric::new("writes_per_s", "1/s");
pub const P50: Metric = Metric::new("p50_us", "us");
pub const P99: Metric = Metric::new("p99_us", "us");
/// Requests that were not answered well.
pub const FAILED: Metric = Metric::new("failed", "");
/// CPU time of all that serves, per operation; never of who asks.
pub const CPU: Metric = Metric::new("cpu_us", "us");
/// CPU time of who asks, per operation: equal work for all systems, shown to prove it small.
pub const CLIENT_CPU: Metric = Metric::new("client_cpu_us", "us");

impl Metric {
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit }
    }
}

/// One number that a system gave in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub metric: Metric,
    pub value: f64,
}

impl Metric {
    pub fn of(self, value: f64) -> Reading {
        Reading {
            metric: self,
            value,
        }
    }
}

#[derive(Debug)]
struct Series {
    case: String,
    system: &'static str,
    metric: Metric,
    /// By round.
    values: Vec<(usize, f64)>,
}

impl Series {
    fn spread(&self) -> Option<Spread> {
        let values: Vec<_> = self.values.iter().map(|(_, value)| *value).collect();
        spread(&values)
    }
}

/// What a benchmark measured, and who was not there to be measured.
#[derive(Debug)]
pub struct Board {
    bench: &'static str,
    series: Vec<Series>,
    missing: Vec<(&'static str, String)>,
}

/// One line of `--json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    bench: &'a str,
    case: &'a str,
    system: &'a str,
    metric: &'a str,
    unit: &'a str,
    median: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    runs: usize,
}

impl Board {
    pub fn new(bench: &'static str) -> Self {
        Self {
            bench,
            series: Vec::new(),
            missing: Vec::new(),
        }
    }

    pub fn add(&mut self, case: &str, system: &'static str, round: usize, reading: Reading) {
        let same =
            |s: &&mut Series| s.case == case && s.system == system && s.metric == reading.metric;
        if let Some(series) = self.series.iter_mut().find(same) {
            series.values.push((round, reading.value));
            return;
        }
        self.series.push(Series {
            case: case.to_owned(),
            system,
            metric: reading.metric,
            values: vec![(round, reading.value)],
        });
    }

    /// Says that a system could not be measured, and why.
    pub fn missing(&mut self, system: &'static str, why: String) {
        self.missing.push((system, why));
    }

    /// Whether every system was there.
    pub fn complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// A table for people: case by case, metric by metric, ours above the others.
    pub fn table(&self) -> String {
        let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
        rows.extend(self.order().into_iter().map(|series| self.row(series)));
        let mut text = format!("{}\n{}", self.bench, columns(&rows));
        for (system, why) in &self.missing {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "MISSING {system}: {why}");
        }
        text
    }

    /// One JSON object a line. A missing system has a line too, with no numbers in it.
    pub fn json(&self) -> serde_json::Result<String> {
        let measured = self.order().into_iter().map(|series| {
            let spread = series.spread();
            self.line(
                (&series.case, series.system),
                series.metric,
                spread,
                series.values.len(),
            )
        });
        let missing = Metric::new("missing", "");
        let absent = self
            .missing
            .iter()
            .map(|(system, _)| self.line(("", system), missing, None, 0));
        let mut text = String::new();
        for line in measured.chain(absent) {
            text += &serde_json::to_string(&line)?;
            text.push('\n');
        }
        Ok(text)
    }

    fn line<'a>(
        &'a self,
        (case, system): (&'a str, &'a str),
        metric: Metric,
        spread: Option<Spread>,
        runs: usize,
    ) -> Line<'a> {
        Line {
            bench: self.bench,
            case,
            system,
            metric: metric.name,
            unit: metric.unit,
            median: spread.map(|s| rounded(s.median)),
            min: spread.map(|s| rounded(s.min)),
            max: spread.map(|s| rounded(s.max)),
            runs,
        }
    }

    /// Cases and metrics as they came, systems of the same side by side, ours first.
    fn order(&self) -> Vec<&Series> {
        let place = |series: &Series| {
            let first = |same: &dyn Fn(&Series) -> bool| self.series.iter().position(same);
            (
                first(&|s| s.case == series.case),
                first(&|s| s.case == series.case && s.metric == series.metric),
                series.system != OURS,
            )
        };
        let mut all: Vec<_> = self.series.iter().collect();
        all.sort_by_key(|series| place(series));
        all
    }

    fn row(&self, series: &Series) -> Vec<String> {
        let spread = series.spread();
        let shown =
            |value: fn(Spread) -> f64| spread.map_or_else(String::new, |s| number(value(s)));
        vec![
            series.case.clone(),
            format!("{} [{}]", series.metric.name, series.metric.unit),
            series.system.to_owned(),
            shown(|s| s.median),
            format!("{}..{}", shown(|s| s.min), shown(|s| s.max)),
            series.values.len().to_string(),
            self.ratio(series).unwrap_or_default(),
        ]
    }

    /// How many times ours is what this one is, by the pairs of each round.
    fn ratio(&self, other: &Series) -> Option<String> {
        let ours =
            |s: &&Series| s.system == OURS && s.case == other.case && s.metric == other.metric;
        let ours = self.series.iter().find(ours)?;
        if other.system == OURS {
            return None;
        }
        paired_ratio(&ours.values, &other.values).map(|ratio| format!("{ratio:.2}x"))
    }
}

const HEADINGS: [&str; 7] = [
    "case",
    "metric",
    "system",
    "median",
    "min..max",
    "runs",
    "selvedge/this",
];

/// Left-aligned columns two spaces apart.
fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..HEADINGS.len()).map(width).collect();
    rows.iter().fold(String::new(), |text, row| {
        let cells = row.iter().zip(&widths);
        let line = cells.fold(String::new(), |line, (cell, width)| {
            format!("{line}{cell:width$}  ")
        });
        text + line.trim_end() + "\n"
    })
}

/// Three figures that matter and no more.
fn number(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.places$}")
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let mut board = Board::new("proxy");
        for (round, (ours, theirs)) in [(90.0, 100.0), (45.0, 100.0), (80.0, 80.0)]
            .into_iter()
            .enumerate()
        {
            board.add("c1", "nginx", round, RPS.of(theirs));
            board.add("c1", "nginx", round, CPU.of(5.25));
            board.add("c1", OURS, round, RPS.of(ours));
            board.add("c1", OURS, round, CPU.of(10.5));
        }
        board.add("c32", OURS, 0, RPS.of(164_000.126));
        board.missing("haproxy", "no such package".to_owned());
        board
    }

    #[test]
    fn people_read_a_table() {
        let expected = "\
proxy
case  metric       system    median  min..max        runs  selvedge/this
c1    rps [1/s]    selvedge  80.0    45.0..90.0      3
c1    rps [1/s]    nginx     100     80.0..100       3     0.90x
c1    cpu_us [us]  selvedge  10.5    10.5..10.5      3
c1    cpu_us [us]  nginx     5.25    5.25..5.25      3     2.00x
c32   rps [1/s]    selvedge  164000  164000..164000  1
MISSING haproxy: no such package
";
        assert_eq!(board().table(), expected);
    }

    #[test]
    fn programs_read_one_object_a_line() {
        let expected = r#"
{"bench":"proxy","case":"c1","system":"selvedge","metric":"rps","unit":"1/s","median":80.0,"min":45.0,"max":90.0,"runs":3}
{"bench":"proxy","case":"c1","system":"nginx","metric":"rps","unit":"1/s","median":100.0,"min":80.0,"max":100.0,"runs":3}
{"bench":"proxy","case":"c1","system":"selvedge","metric":"cpu_us","unit":"us","median":10.5,"min":10.5,"max":10.5,"runs":3}
{"bench":"proxy","case":"c1","system":"nginx","metric":"cpu_us","unit":"us","median":5.25,"min":5.25,"max":5.25,"runs":3}
{"bench":"proxy","case":"c32","system":"selvedge","metric":"rps","unit":"1/s","median":164000.126,"min":164000.126,"max":164000.126,"runs":1}
{"bench":"proxy","case":"","system":"haproxy","metric":"missing","unit":"","median":null,"min":null,"max":null,"runs":0}
"#;
        assert_eq!(board().json().unwrap(), expected.trim_start());
    }

    #[test]
    fn who_is_missing_keeps_a_board_from_being_complete() {
        assert!(!board().complete());
        assert!(Board::new("proxy").complete());
    }
}
