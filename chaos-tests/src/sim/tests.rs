//! The seeds that CI runs, the planted bugs that they must find, and what the named scenarios show.
//!
//! Seeds that failed when the code was of their time, and what they found:
//!
//! | seed | what it found |
//! |---|---|
//! | 7, 57, 177 | a steward stopped what a door had just started, and the next burst started it again, for ever |

use super::scenario::{Extent, Scenario};
use super::*;

/// Every one runs twice, in four tests side by side.
fn hold_and_mean_the_same_twice(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let (first, second) = (run(Plan::of(seed)), run(Plan::of(seed)));
        let what = first.findings.join("\n");
        assert!(
            what.is_empty(),
            "{what}\n{:#?}\n{}",
            Plan::of(seed),
            first.lines.concat()
        );
        assert_eq!(first.digest, second.digest, "seed {seed} is not one run");
    }
}

#[test]
fn the_first_fifty_seeds_hold_and_mean_the_same_twice() {
    hold_and_mean_the_same_twice(0..50);
}

#[test]
fn the_second_fifty_seeds_hold_and_mean_the_same_twice() {
    hold_and_mean_the_same_twice(50..100);
}

#[test]
fn the_third_fifty_seeds_hold_and_mean_the_same_twice() {
    hold_and_mean_the_same_twice(100..150);
}

#[test]
fn the_fourth_fifty_seeds_hold_and_mean_the_same_twice() {
    hold_and_mean_the_same_twice(150..200);
}

/// The first of a few seeds whose run with the bug finds something.
fn finds(bug: Bug) -> Option<String> {
    let findings = |seed| run(Plan::of(seed).with(bug)).findings;
    (0..30).find_map(|seed| findings(seed).into_iter().next())
}

#[test]
fn every_planted_bug_is_found() {
    let table = [
        (Bug::TakesAll, "over its capacity"),
        (Bug::IgnoresResidency, "which is not its own"),
        (Bug::SharesVolumes, "has its one volume on hosts"),
        (Bug::ForgetsRequests, "is not answered"),
        (Bug::KillsBusy, "was ended with its instance"),
        (Bug::StopsFollowing, ""),
        (Bug::NeverStops, ""),
        (Bug::StartsTwice, "made two instances"),
        (Bug::Forgetful, ""),
        (Bug::Mixes, "got a request to"),
    ];
    for (bug, what) in table {
        let found = finds(bug);
        let right = found.as_ref().is_some_and(|found| found.contains(what));
        assert!(right, "{bug:?}: {found:?}");
    }
    let digest = || run(Plan::of(0).with(Bug::Unseeded)).digest;
    assert_ne!(
        digest(),
        digest(),
        "what does not follow from the seed shows"
    );
}

fn plan(scenario: Scenario, hosts: usize, seconds: u64) -> Plan {
    scenario.plan(
        1,
        &Extent {
            hosts,
            services: 1,
            lasts: seconds * 1_000,
        },
    )
}

/// The median of what requests from a region took in that time, all of which must have been answered.
fn median(report: &Report, region: usize, seconds: std::ops::Range<u64>) -> u64 {
    let span = seconds.start * 1_000..seconds.end * 1_000;
    let those = report
        .figures
        .answers
        .iter()
        .filter(|a| a.region == region && span.contains(&a.at));
    let mut took: Vec<u64> = those
        .inspect(|a| assert!(a.ok, "{a:?}"))
        .map(|a| a.took)
        .collect();
    took.sort_unstable();
    took[took.len() / 2]
}

#[test]
fn the_traffic_moves_and_its_instances_with_it() {
    // The crowd moves after 80 seconds.
    let report = run(plan(Scenario::TrafficMoves, 12, 120));
    assert_eq!(report.findings, [""; 0]);
    assert!(median(&report, 0, 60..80) < 30, "at home");
    assert!(median(&report, 1, 80..82) > 55, "40 ms away at first");
    assert!(median(&report, 1, 90..100) < 30, "local within ten seconds");
    assert!(median(&report, 1, 100..140) < 30);
    let series = &report.figures.instances[0];
    let at = |second: usize| (series[second][0], series[second][1], series[second][2]);
    assert!(at(70).0 > 0 && at(70).1 == 0, "{:?}", at(70));
    assert!(at(92).1 > 0 && at(138).0 == 0, "{:?} {:?}", at(92), at(138));
    let third = series[60..].iter().map(|sites| sites[2]);
    assert_eq!(third.max(), Some(0), "nobody asks there");
    // Nothing goes back and forth.
    let up = |pair: &[Vec<u32>]| pair[1][1] > pair[0][1];
    let rises = series[80..].windows(2).filter(|pair| up(pair)).count();
    assert!(rises <= 3, "{rises} rises: {series:?}");
    assert!(
        report.figures.causes.contains_key("traffic from here"),
        "{:?}",
        report.figures.causes
    );
}

#[test]
fn from_one_to_none_to_two_hundred_and_back() {
    // A crowd from 50 to 80 seconds.
    let report = run(plan(Scenario::Flash, 18, 120));
    assert_eq!(report.findings, [""; 0]);
    assert!(
        report.figures.answers.iter().all(|answer| answer.ok),
        "{:?}",
        report.figures.refused
    );
    let series = &report.figures.instances[0];
    let all: Vec<u32> = series.iter().map(|sites| sites.iter().sum()).collect();
    assert!(all[..20].contains(&1), "{all:?}");
    assert_eq!(all[48], 0, "asleep");
    let most = all.iter().max().copied().unwrap_or(0);
    assert!((200..420).contains(&most), "{most}");
    assert_eq!(all.last(), Some(&0), "asleep again: {all:?}");
}

#[test]
fn an_island_decides_within_bounds_says_so_and_comes_back() {
    // Cut off from 36 to 132 seconds, the crowd there from 68, the others' new version from 52.
    let report = run(plan(Scenario::Island, 12, 128));
    assert_eq!(report.findings, [""; 0]);
    assert_eq!(report.figures.lost, 0);
    let ok = |a: &&Answer| a.region == 2 && (72_000..130_000).contains(&a.at);
    let answers: Vec<_> = report.figures.answers.iter().filter(ok).collect();
    assert!(answers.len() > 1_000, "{}", answers.len());
    assert!(
        median(&report, 2, 80..130) < 330,
        "they are answered at home, from zero"
    );
    let series = &report.figures.instances[0];
    let most = series[70..131].iter().map(|sites| sites[2]).max();
    assert!(
        (2..=scenario::ISLAND_MAX).contains(&most.unwrap_or(0)),
        "{most:?} within the service's bounds"
    );
    let here = |order: &&Ordered| order.host >= 8 && (60_000..132_000).contains(&order.at);
    let orders: Vec<_> = report.figures.orders.iter().filter(here).collect();
    assert!(!orders.is_empty(), "somebody on the island had one started");
    for order in orders {
        let told = order
            .why
            .contains("decided on an island: the registry is as it was")
            && order.why.contains("4 of 12 nodes are heard");
        assert!(told, "{order:?}");
    }
    let calm = |order: &&Ordered| order.at > 160_000;
    for order in report.figures.orders.iter().filter(calm) {
        assert!(!order.why.contains("island"), "{order:?}");
    }
    let last: u32 = series.last().into_iter().flatten().sum();
    assert!((1..=scenario::ISLAND_MAX).contains(&last), "{last}");
}

#[test]
fn two_stewards_none_and_one_that_flaps_do_no_harm() {
    // Two from 36 to 52 seconds, none from 68 to 84, flapping from then to 116.
    let report = run(plan(Scenario::Stewards, 24, 96));
    assert_eq!(report.findings, [""; 0]);
    let refused: u64 = report.figures.refused.values().sum();
    assert!(
        refused * 200 <= report.figures.answered,
        "{refused} refused"
    );
    let all: Vec<u32> = report.figures.instances[0]
        .iter()
        .map(|sites| sites.iter().sum())
        .collect();
    let most = |seconds: std::ops::Range<usize>| all[seconds].iter().max().copied().unwrap_or(0);
    assert!(most(20..35) <= scenario::ISLAND_MAX, "{all:?}");
    assert!(
        most(36..116) <= 2 * scenario::ISLAND_MAX,
        "each its own: {all:?}"
    );
    let calm = all.len() - 40;
    assert!((1..=scenario::ISLAND_MAX).contains(&most(calm..all.len())));
    let starts = report.figures.starts;
    assert!(
        starts < 80,
        "{starts} starts for {} instances",
        most(0..all.len())
    );
}

#[test]
fn sites_and_hosts_that_come_and_go_lose_nobody() {
    for scenario in [
        Scenario::SiteLost,
        Scenario::Flapping,
        Scenario::Scan,
        Scenario::Diurnal,
    ] {
        let extent = Extent {
            hosts: 12,
            services: 6,
            lasts: 60_000,
        };
        let report = run(scenario.plan(1, &extent));
        assert_eq!(report.findings, [""; 0], "{scenario:?}");
        let refused: u64 = report.figures.refused.values().sum();
        assert!(
            refused * 100 <= report.figures.answered,
            "{scenario:?}: {:?}",
            report.figures.refused
        );
    }
}
