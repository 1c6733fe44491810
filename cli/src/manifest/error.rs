//! An error in a manifest, with its place: `file:line:col`, the line, and a caret under the fault.

use std::fmt;
use std::ops::Range;

/// Longer lines are cut in errors.
const LINE_CHARS: usize = 120;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    pub file: String,
    pub message: String,
    /// Empty, or what to write instead.
    pub help: String,
    pub at: Option<Place>,
}

/// A place in a text, counted from 1, in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    /// Characters the caret spans on this line.
    pub width: usize,
    pub text: String,
}

impl Place {
    /// Where `span` (bytes) starts in `text`.
    pub fn of(text: &str, span: Range<usize>) -> Self {
        let start = floor(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = floor(text, span.end).clamp(start, line_end);
        let column = text[line_start..start].chars().count() + 1;
        Self {
            line: text[..start].matches('\n').count() + 1,
            column,
            width: text[start..end].chars().count().max(1),
            text: text[line_start..line_end]
                .trim_end_matches('\r')
                .replace('\t', " "),
        }
    }
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.at else {
            write!(f, "{}: {}", self.file, self.message)?;
            return if self.help.is_empty() {
                Ok(())
            } else {
                write!(f, "\n  = {}", self.help)
            };
        };
        let number = place.line.to_string();
        let gutter = " ".repeat(number.len());
        let shown: String = place.text.chars().take(LINE_CHARS).collect();
        let column = place.column.min(LINE_CHARS);
        let width = place.width.min(LINE_CHARS + 1 - column);
        writeln!(
            f,
            "{}:{}:{}: {}",
            self.file, place.line, place.column, self.message
        )?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{number} | {shown}")?;
        write!(
            f,
            "{gutter} | {}{}",
            " ".repeat(column - 1),
            "^".repeat(width)
        )?;
        if !self.help.is_empty() {
            write!(f, "\n{gutter} = {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestError {}
