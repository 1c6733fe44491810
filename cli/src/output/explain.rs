//! `explain`: a placement's receipt as sentences and a table, a cold start's bill as bars.

use std::fmt::Write;

use netfabric::wire::api::{Bill, Explanation};
use netfabric::wire::decision::{Decision, Deed};
use scheduler::place::{Parts, Passed, Receipt, Rejection, Verdict};

use super::plain_table;
use super::rows::distance;
use super::words::{bytes, cores, first_line, micros, or_dash, time};

/// The longest bar of a bill.
const BAR: u64 = 40;
/// Characters of a decision's reason; JSON has all of it.
const WHY: usize = 120;

pub fn explanation(explanation: &Explanation) -> String {
    let mut out = format!("{}\n", explanation.subject);
    for sentence in &explanation.why {
        let _ = writeln!(out, "  {sentence}");
    }
    if let Some(receipt) = &explanation.receipt {
        let _ = write!(
            out,
            "\n{}\n\n{}\n",
            verdict_sentence(receipt),
            verdicts(receipt)
        );
    }
    if let Some(bill) = &explanation.bill {
        let _ = write!(out, "\n{}", paid(bill));
    }
    if !explanation.decisions.is_empty() {
        let _ = write!(out, "\n{}\n", decisions(&explanation.decisions));
    }
    let known = explanation.receipt.is_some() || explanation.bill.is_some();
    if explanation.why.is_empty() && !known && explanation.decisions.is_empty() {
        out.push_str("  Nothing is known of it any more.\n");
    }
    out
}

/// What nodes wrote down, the oldest first.
fn decisions(all: &[Decision]) -> String {
    let head = ["DECIDED", "BY", "WHAT", "INSTANCE", "WHY"];
    let rows = all.iter().map(|decision| {
        let what = match decision.deed {
            Deed::Placed => "took it on",
            Deed::Scaled => "one more",
            Deed::Retired => "to end",
            Deed::Refused => "refused",
            Deed::Unplaced => "no node",
            Deed::Failed => "gave up",
            Deed::Other => "-",
        };
        let why = first_line(&decision.why, WHY);
        let again = match decision.unwritten {
            0 => String::new(),
            times => format!(" (and {times} times before)"),
        };
        vec![
            time(decision.at),
            decision.node_name.to_string(),
            what.to_owned(),
            or_dash(decision.instance.as_ref().map_or("", |id| &id.0)),
            format!("{why}{again}"),
        ]
    });
    plain_table(&head, rows)
}

/// What was decided and by whom, in a sentence.
fn verdict_sentence(receipt: &Receipt) -> String {
    let named = receipt
        .verdicts
        .iter()
        .find(|v| v.node == receipt.decided_by);
    let decider = named.map_or_else(|| receipt.decided_by.to_string(), |v| v.name.to_string());
    let accepted = receipt.ranked().count();
    let refused = receipt.verdicts.len() - accepted;
    let why = match receipt.why.as_str() {
        "" => String::new(),
        why => format!("; {why}"),
    };
    let asked = format!(
        "{decider} placed {} (cause: {}{why})",
        receipt.revision, receipt.cause
    );
    let best = receipt
        .verdicts
        .iter()
        .find_map(|v| Some((v, v.outcome.as_ref().ok()?)));
    match best {
        Some((verdict, candidate)) => {
            let image = if candidate.image_present {
                "the image is there"
            } else {
                "the image must be fetched"
            };
            let reckoned = || match candidate.parts.round_trip {
                0 => "at an unmeasured distance".to_owned(),
                reckoned => format!("reckoned to be {} away", micros(reckoned)),
            };
            let rtt = candidate.rtt_micros.map_or_else(reckoned, |rtt| {
                if rtt == 0 {
                    "the decider itself".to_owned()
                } else {
                    format!("{} away", micros(rtt.into()))
                }
            });
            format!(
                "{asked}: {} came first of {accepted}, {} expected: {rtt}, {image}.{}{}{}{}",
                verdict.name,
                micros(candidate.cost_micros),
                match refused {
                    0 => String::new(),
                    1 => " One node refused.".to_owned(),
                    n => format!(" {n} nodes refused."),
                },
                passed(&receipt.passed),
                displaced(receipt),
                made_of(&candidate.parts),
            )
        }
        None => format!("{asked}: no node can take it."),
    }
}

/// The nodes that have no verdict of their own.
fn passed(passed: &Passed) -> String {
    let mut out = String::new();
    let more = [
        (passed.refused, "refused too"),
        (passed.closed, "took no instances"),
    ];
    for (count, what) in more.into_iter().filter(|(count, _)| *count > 0) {
        let _ = write!(out, " {count} more {what}.");
    }
    if passed.unseen > 0 {
        let _ = write!(out, " {} were not looked at: ", passed.unseen);
        let _ = match passed.regret_micros {
            0 => write!(out, "none of them can be better."),
            regret => write!(out, "the best of them saves {} at most.", micros(regret)),
        };
    }
    out
}

/// Who goes for it.
fn displaced(receipt: &Receipt) -> String {
    let Some(displaces) = &receipt.displaces else {
        return String::new();
    };
    let victims = displaces.victims.iter();
    let victims: Vec<String> = victims
        .map(|v| format!("{} (priority {})", v.instance, v.priority))
        .collect();
    format!(
        " No node has room; with priority {} it displaces {} there.",
        displaces.priority,
        victims.join(", ")
    )
}

/// What the expected time of the first one is the sum of.
fn made_of(parts: &Parts) -> String {
    // Named one by one, so that none is left out.
    let Parts {
        round_trip,
        start,
        pull,
        crowding,
        beside,
        spread,
        slack,
        prefer,
        energy,
        pressure,
        silence,
    } = *parts;
    let parts = [
        ("round trip", round_trip),
        ("start", start),
        ("pull", pull),
        ("how full it is", crowding),
        ("others of it there", beside),
        ("others of it in its zone or region", spread),
        ("what stays free on it", slack),
        ("preferences it does not meet", prefer),
        ("its energy", energy),
        ("what waits there for processors, memory or disk", pressure),
        ("how long nothing was heard of it", silence),
    ];
    let parts = parts.into_iter().filter(|(_, cost)| *cost > 0);
    let parts: Vec<_> = parts
        .map(|(what, cost)| format!("{what} {}", micros(cost)))
        .collect();
    if parts.is_empty() {
        return String::new();
    }
    format!("\nIt counted {}.", parts.join(", "))
}

fn verdicts(receipt: &Receipt) -> String {
    let head = [
        "NODE",
        "REGION",
        "VERDICT",
        "COST",
        "RTT",
        "IMAGE",
        "SAME",
        "CPU-FREE",
        "MEMORY-FREE",
        "REASON",
    ];
    let mut place = 0;
    let rows = receipt.verdicts.iter().map(|verdict| {
        if verdict.outcome.is_ok() {
            place += 1;
        }
        row(verdict, place)
    });
    plain_table(&head, rows.collect::<Vec<_>>().into_iter())
}

fn row(verdict: &Verdict, place: usize) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut cells = vec![verdict.name.to_string(), verdict.region.to_string()];
    match &verdict.outcome {
        Ok(candidate) => cells.extend([
            if place == 1 {
                "first".to_owned()
            } else {
                format!("{place}.")
            },
            micros(candidate.cost_micros),
            candidate.rtt_micros.map_or_else(dash, distance),
            if candidate.image_present {
                "here"
            } else {
                "missing"
            }
            .to_owned(),
            candidate.same_revision.to_string(),
            cores(candidate.free_cpu_millis),
            bytes(candidate.free_memory_bytes),
            dash(),
        ]),
        Err(rejection) => {
            cells.push("refused".to_owned());
            cells.extend(std::iter::repeat_with(dash).take(6));
            cells.push(reason(rejection));
        }
    }
    cells
}

/// A rejection with its amounts as people read them.
fn reason(rejection: &Rejection) -> String {
    match rejection {
        Rejection::Cpu { want, free } => {
            format!("needs {} cores, {} free", cores(*want), cores(*free))
        }
        Rejection::Memory { want, free } => {
            format!("needs {} of memory, {} free", bytes(*want), bytes(*free))
        }
        other => other.to_string(),
    }
}

fn paid(bill: &Bill) -> String {
    // It passes unread, and has no status.
    let connection = bill.status == 0;
    let mut out = format!(
        "{} {} to {} at {}: {}, {} in all\n",
        if connection { "Connection" } else { "Request" },
        bill.request,
        bill.revision,
        time(bill.at),
        if connection {
            bill.problem.clone().unwrap_or_else(|| "let in".to_owned())
        } else {
            format!("status {}", bill.status)
        },
        micros(bill.total_micros),
    );
    if let Some(instance) = &bill.instance {
        let _ = writeln!(out, "Served by {instance}");
    }
    let longest = bill
        .phases
        .iter()
        .map(|p| p.micros)
        .max()
        .unwrap_or(0)
        .max(1);
    let width = bill
        .phases
        .iter()
        .map(|p| p.name.len())
        .max()
        .unwrap_or(0)
        .max("total".len());
    for phase in &bill.phases {
        let scaled = u128::from(phase.micros) * u128::from(BAR) / u128::from(longest);
        let length = usize::try_from(scaled)
            .unwrap_or(0)
            .max(usize::from(phase.micros > 0));
        let bar = "#".repeat(length);
        let line = format!(
            "  {:width$}  {:>8}  {bar}",
            phase.name,
            micros(phase.micros)
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(
        out,
        "  {:width$}  {:>8}",
        "total",
        micros(bill.total_micros)
    );
    out
}
