//! Pure printing: shapes of the API in, text for people out. Tables look like kubectl's.

mod describe;
mod doctor;
mod domain;
mod explain;
mod rows;
mod sandbox;
mod status;
mod top;
mod words;
mod yaml;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use comfy_table::{ContentArrangement, Table, presets};
use netfabric::wire::api::LogLine;
use scheduler::model::UnixMs;

pub use describe::{describe_instance, describe_node, describe_revision, describe_service};
pub use doctor::diagnosis;
pub use domain::{DomainCheck, Reached, domain_check};
pub use explain::explanation;
pub use rows::scale_bounds;
pub use status::status;
pub use top::{TopKind, top_rows, top_table};
pub use words::{bytes, time};
pub use yaml::yaml;

/// How a table is asked for.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub wide: bool,
    /// Names carry their namespace.
    pub namespaced: bool,
    pub now: UnixMs,
}

/// Something a table has a row for.
pub trait Row {
    const KIND: &'static str;
    const PLURAL: &'static str;
    /// Columns always shown, then those of the wide form.
    const COLUMNS: &'static [&'static str];
    const WIDE: &'static [&'static str];

    fn name(&self) -> String;
    fn cells(&self, view: &View) -> Vec<String>;
    fn wide_cells(&self, view: &View) -> Vec<String>;
}

/// The table of `items`, without a line's end.
pub fn table<T: Row>(items: &[T], view: &View) -> String {
    let mut head: Vec<&str> = T::COLUMNS.to_vec();
    if view.wide {
        head.extend(T::WIDE);
    }
    let rows = items.iter().map(|item| {
        let mut cells = item.cells(view);
        if view.wide {
            cells.extend(item.wide_cells(view));
        }
        cells
    });
    plain_table(&head, rows)
}

/// Upper-case headers, three blanks between columns, nothing else.
pub fn plain_table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// After a piece of a line too long for one.
const GOES_ON: &str = " \u{2026}";

/// A log line; with its instance before it when several speak.
pub fn log_line(line: &LogLine, stamped: bool, many: bool) -> String {
    let text = line.line.trim_end_matches(['\r', '\n']);
    let from = if many {
        format!("{} | ", line.instance)
    } else {
        String::new()
    };
    let goes_on = if line.partial { GOES_ON } else { "" };
    if stamped {
        format!("{from}{} {} {text}{goes_on}", time(line.time), line.stream)
    } else {
        format!("{from}{text}{goes_on}")
    }
}
