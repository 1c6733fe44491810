//! Errors as people read them: with their causes, of which the innermost is mostly the one that helps
//! ("connection refused").

use std::error::Error;

/// An error and its causes in one line. What an error already says of its cause is not said again.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        #[source]
        next: Option<Box<Link>>,
    }

    #[test]
    fn each_cause_is_told_once() {
        let link = |text, next: Option<Link>| Link {
            text,
            next: next.map(Box::new),
        };
        let inner = link("connection refused", None);
        let outer = link(
            "no answer",
            Some(link("trying: connection refused", Some(inner))),
        );
        assert_eq!(with_causes(&outer), "no answer: trying: connection refused");
    }
}
