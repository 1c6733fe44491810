//! What the demo promised and what came of it, for eyes and for programs.

use std::time::Duration;

use serde::Serialize;

/// The demo's result. It is good when no promise was broken.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scorecard {
    pub rows: Vec<Row>,
    /// From the making of the hosts to the end, without building and the making of images.
    pub seconds: f64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The promise.
    pub what: String,
    /// What was measured.
    pub figure: String,
    /// `None` where nothing is promised: a figure for information.
    pub kept: Option<bool>,
}

impl Scorecard {
    /// A promise and whether it was kept.
    pub fn promise(&mut self, what: &str, figure: impl Into<String>, kept: bool) {
        self.rows.push(Row {
            what: what.to_owned(),
            figure: figure.into(),
            kept: Some(kept),
        });
    }

    /// A figure of interest.
    pub fn figure(&mut self, what: &str, figure: impl Into<String>) {
        self.rows.push(Row {
            what: what.to_owned(),
            figure: figure.into(),
            kept: None,
        });
    }

    #[must_use]
    pub fn kept(&self) -> bool {
        self.rows.iter().all(|row| row.kept != Some(false))
    }

    /// As a plain table, a line a row.
    #[must_use]
    pub fn table(&self) -> String {
        let widest = self
            .rows
            .iter()
            .map(|r| r.what.chars().count())
            .max()
            .unwrap_or(0);
        let line = |row: &Row| {
            let mark = match row.kept {
                Some(true) => "ok  ",
                Some(false) => "FAIL",
                None => "    ",
            };
            format!("  {mark}  {:widest$}  {}", row.what, row.figure)
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// A span as people read it: `840 µs`, `31 ms`, `2.4 s`.
#[must_use]
pub fn span(span: Duration) -> String {
    let micros = span.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", span.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_breaks_the_card() {
        let mut card = Scorecard::default();
        card.figure("leader elected again", "1.2 s");
        card.promise("failed requests", "0 of 2000", true);
        assert!(card.kept());
        card.promise("instances after idle", "2", false);
        assert!(!card.kept());
        assert_eq!(
            card.table(),
            "        leader elected again  1.2 s\n  ok    failed requests       0 of 2000\n  \
             FAIL  instances after idle  2"
        );
    }

    #[test]
    fn spans_read_well() {
        for (micros, text) in [
            (7, "7 µs"),
            (1_540, "1.5 ms"),
            (31_400, "31 ms"),
            (2_400_000, "2.4 s"),
        ] {
            assert_eq!(span(Duration::from_micros(micros)), text);
        }
    }
}
