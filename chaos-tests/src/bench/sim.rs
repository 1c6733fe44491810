//! `sim`: whole cells of simulated nodes through a day of traffic and faults, which lasts an hour. The goal is
//! ten thousand nodes in fifty cells within ten minutes on two processors, with a mean time to the first byte within
//! 1.2 of an all-knowing planner's, and instance-seconds within 1.15. `--case cell` runs one cell, `--most`
//! bounds the cells.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::board::{Metric, OURS};
use super::{Board, Plan};
use crate::sim::cells::Cells;

const CASES: [&str; 2] = ["cell", "fleet"];
const CELLS: usize = 50;
const HOSTS: usize = 200;
const SERVICES: usize = 200;
const HOUR_MILLIS: u64 = 3_600_000;

const TOOK: Metric = Metric::new("took_s", "s");
const SPEED: Metric = Metric::new("virtual_node_s_per_s", "1/s");
const SLOWER: Metric = Metric::new("ttfb_ratio", "x");
const DEARER: Metric = Metric::new("instance_ratio", "x");
const REQUESTS: Metric = Metric::new("requests", "");
const REFUSED: Metric = Metric::new("refused_or_lost", "");

pub(super) fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("sim");
    for case in plan.chosen(&CASES) {
        let cells = if case == "cell" {
            1
        } else {
            CELLS.min(plan.most)
        };
        for round in 0..plan.rounds {
            let cells = Cells {
                cells,
                hosts: HOSTS,
                services: SERVICES,
                lasts: HOUR_MILLIS,
                seed: 1 + u64::try_from(round)? * 1_000,
            };
            let began = Instant::now();
            let outcome = cells.run();
            let took = began.elapsed().as_secs_f64();
            ensure!(outcome.findings.is_empty(), "{:#?}", outcome.findings);
            let named = format!(
                "{case}: {} nodes, {} services",
                outcome.hosts, outcome.services
            );
            let simulated = float(u64::try_from(outcome.hosts)? * HOUR_MILLIS / 1_000);
            for reading in [
                TOOK.of(took),
                SPEED.of(simulated / took),
                SLOWER.of(outcome.slower()),
                DEARER.of(outcome.dearer()),
                REQUESTS.of(float(outcome.answered)),
                REFUSED.of(float(outcome.refused + outcome.lost)),
            ] {
                board.add(&named, OURS, round, reading);
            }
        }
    }
    Ok(board)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a simulation")]
fn float(count: u64) -> f64 {
    count as f64
}
