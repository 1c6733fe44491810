//! What a command ends with when it does not end well: the message, its details, the next thing
//! to type, and the exit code.

use std::fmt;

use netfabric::wire::api::{ApiError, ErrorCode};

/// The exit codes of `selvedge`. Scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    WaitTimedOut = 4,
    CannotPlace = 5,
    Conflict = 6,
    NotAuthorised = 7,
    /// No quorum, or the node cannot be reached.
    Unavailable = 8,
}

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::NotFound => Self::NotFound,
            ErrorCode::Invalid | ErrorCode::TooLarge => Self::Usage,
            ErrorCode::Conflict | ErrorCode::Gone => Self::Conflict,
            ErrorCode::CannotPlace => Self::CannotPlace,
            ErrorCode::NoQuorum | ErrorCode::Unreachable => Self::Unavailable,
            ErrorCode::Unauthorized => Self::NotAuthorised,
            ErrorCode::Image | ErrorCode::Internal => Self::Failed,
            ErrorCode::Timeout => Self::WaitTimedOut,
        }
    }
}

/// An error for people.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    pub details: Vec<String>,
    pub hint: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            details: Vec::new(),
            hint: String::new(),
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    #[must_use]
    pub fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// The failure an error of any command means: itself when it is one, else exit 1 with its
    /// causes as details.
    pub fn from_error(error: anyhow::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(|error| Self {
            exit: Exit::Failed,
            message: error.to_string(),
            details: error.chain().skip(1).map(ToString::to_string).collect(),
            hint: String::new(),
        })
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self {
            exit: error.code.into(),
            message: error.message,
            details: error.details,
            hint: error.hint,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_exit_codes() {
        let table = [
            (ErrorCode::NotFound, 3),
            (ErrorCode::Invalid, 2),
            (ErrorCode::Conflict, 6),
            (ErrorCode::CannotPlace, 5),
            (ErrorCode::NoQuorum, 8),
            (ErrorCode::Unreachable, 8),
            (ErrorCode::Unauthorized, 7),
            (ErrorCode::Image, 1),
            (ErrorCode::Internal, 1),
            (ErrorCode::TooLarge, 2),
            (ErrorCode::Timeout, 4),
            (ErrorCode::Gone, 6),
        ];
        for (code, exit) in table {
            assert_eq!(Exit::from(code) as i32, exit, "{code:?}");
        }
    }

    #[test]
    fn causes_become_details() {
        let error =
            anyhow::Error::from(std::io::Error::other("disk full")).context("cannot write x");
        let failure = Failure::from_error(error);
        assert_eq!(failure.message, "cannot write x");
        assert_eq!(failure.details, ["disk full"]);
    }
}
