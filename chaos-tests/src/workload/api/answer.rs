//! Which answers of the API mean done, not done and not known, and the value they carry.

use serde_json::Value;

use crate::workload::history::{Phase, Seen, Told};

/// The annotation that carries a value's serial.
pub(super) const SERIAL: &str = "serial";

/// Where a service carries the serial of the last write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// In an annotation.
    Annotation,
    /// In the upper bound of its scale, so that scaling is a write as well.
    ScaleMax,
}

/// How a call ended, as a history has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub phase: Phase,
    pub told: Told,
    pub why: String,
}

impl Ended {
    pub(super) fn ok(told: Told) -> Self {
        Self {
            phase: Phase::Ok,
            told,
            why: String::new(),
        }
    }

    pub(super) fn bad(phase: Phase, why: impl Into<String>) -> Self {
        Self {
            phase,
            told: Told::default(),
            why: why.into(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    /// The `selvedge-index` header.
    pub index: Option<u64>,
    pub body: Value,
}

#[derive(Debug)]
pub(super) enum CallError {
    /// No byte of it left.
    NotSent(String),
    /// It may have arrived.
    Lost(String),
}

/// What a call came to, before it is known what was asked.
pub(super) enum Verdict {
    Done(Answer),
    /// The registry, or the node's copy of it, found nothing there.
    NotFound(Answer),
    /// The registry refused the version.
    Conflict,
    Undone(String),
    Unknown(String),
}

/// As the node's `api/answer.rs` and `consensus/propose.rs` mean their words. What is not listed
/// here is not known not to have happened.
pub(super) fn judge(answer: Result<Answer, CallError>) -> Verdict {
    let answer = match answer {
        Ok(answer) if answer.status == 200 => return Verdict::Done(answer),
        Ok(answer) => answer,
        Err(CallError::NotSent(why)) => return Verdict::Undone(why),
        Err(CallError::Lost(why)) => return Verdict::Unknown(why),
    };
    let why = format!("{}: {}", code(&answer.body), answer.body["message"]);
    match code(&answer.body) {
        "notFound" => Verdict::NotFound(answer),
        "conflict" => Verdict::Conflict,
        // Found out before the change was handed in, or handed in and certainly not taken.
        "invalid" | "cannotPlace" | "image" | "tooLarge" | "unauthorized" | "noQuorum"
        | "unreachable" => Verdict::Undone(why),
        _ => Verdict::Unknown(why),
    }
}

pub(super) fn undone(verdict: Verdict) -> Ended {
    match verdict {
        Verdict::Undone(why) => Ended::bad(Phase::Fail, why),
        Verdict::Unknown(why) => Ended::bad(Phase::Info, why),
        // Of a node's own copy: nothing was handed in.
        Verdict::NotFound(_) => Ended::bad(Phase::Fail, "not found"),
        Verdict::Conflict => Ended::bad(Phase::Fail, "conflict"),
        Verdict::Done(answer) => Ended::bad(Phase::Info, format!("strange: {}", answer.body)),
    }
}

pub(super) fn wrote(verdict: Verdict, mark: Mark, compared: bool) -> Ended {
    match verdict {
        Verdict::Done(answer) => match seen(&answer.body["service"], mark) {
            Some(Seen { v, rev }) => Ended::ok(Told {
                value: Some(v),
                rev: Some(rev),
                at: None,
            }),
            None => Ended::bad(Phase::Info, format!("no serial: {}", answer.body)),
        },
        // The registry looked and found another version: that tells something.
        Verdict::Conflict if compared => Ended::ok(Told::default()),
        other => undone(other),
    }
}

/// The value of a service as the API shows it.
pub fn seen(service: &Value, mark: Mark) -> Option<Seen> {
    let v = match mark {
        Mark::Annotation => service
            .pointer("/meta/annotations")?
            .get(SERIAL)?
            .as_str()?
            .parse()
            .ok()?,
        Mark::ScaleMax => service.pointer("/scale/max")?.as_u64()?,
    };
    let rev = service.pointer("/meta/resourceVersion")?.as_u64()?;
    Some(Seen { v, rev })
}

pub(super) fn code(body: &Value) -> &str {
    body["code"].as_str().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(status: u16, code: &str) -> Verdict {
        let body = json!({ "code": code, "message": "…" });
        judge(Ok(Answer {
            status,
            index: None,
            body,
        }))
    }

    #[test]
    fn only_what_is_known_not_done_fails() {
        let table = [
            (400, "invalid", Phase::Fail),
            (422, "cannotPlace", Phase::Fail),
            (422, "image", Phase::Fail),
            (503, "noQuorum", Phase::Fail),
            (503, "unreachable", Phase::Fail),
            (504, "timeout", Phase::Info),
            (500, "internal", Phase::Info),
            (502, "something new", Phase::Info),
        ];
        for (status, code, phase) in table {
            let ended = wrote(said(status, code), Mark::Annotation, false);
            assert_eq!(ended.phase, phase, "{code}");
        }
        let unsent = judge(Err(CallError::NotSent("refused".to_owned())));
        assert_eq!(wrote(unsent, Mark::Annotation, false).phase, Phase::Fail);
        let reset = judge(Err(CallError::Lost("reset".to_owned())));
        assert_eq!(wrote(reset, Mark::Annotation, false).phase, Phase::Info);
    }

    #[test]
    fn a_refused_version_is_an_observation() {
        let refused = wrote(said(409, "conflict"), Mark::Annotation, true);
        assert_eq!(refused, Ended::ok(Told::default()));
        let odd = wrote(said(409, "conflict"), Mark::Annotation, false);
        assert_eq!(odd.phase, Phase::Fail);
    }

    #[test]
    fn a_service_carries_its_serial() {
        let service = json!({
            "meta": { "annotations": { "serial": "17" }, "resourceVersion": 90 },
            "scale": { "min": 0, "max": 23 },
        });
        let by = |mark| seen(&service, mark).map(|seen| (seen.v, seen.rev));
        assert_eq!(by(Mark::Annotation), Some((17, 90)));
        assert_eq!(by(Mark::ScaleMax), Some((23, 90)));
    }
}
