//! What the switch promises of frames, shown without devices and on a clock of the test's own:
//! frames and hosts for the tests beside this file.

mod faults;
mod ports;

use std::time::Duration;

use super::switch::{Delivery, Switch};
use super::{Counts, Link, Preset};

const EVERYONE: u8 = 0xff;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
/// Later than anything a link holds back.
const END: Duration = Duration::from_hours(1);

/// A frame between hosts known by a number, of this many bytes behind its header.
fn frame(to: u8, from: u8, kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mac = |host: u8| match host {
        EVERYONE => [0xff; 6],
        host => [2, 0, 0, 0, 0, host],
    };
    [&mac(to)[..], &mac(from), &kind, payload].concat()
}

fn ip(to: u8, from: u8, length: usize) -> Vec<u8> {
    frame(to, from, IPV4, &vec![0; length])
}

/// A switch with the ports a-0, b-1, … that already knows who is where.
fn switch(seed: u64, ports: u8) -> Switch {
    let mut switch = Switch::new(seed, Preset::Lan);
    for port in 0..ports {
        let name = name(port);
        let port_is = switch.plug(&name).unwrap();
        switch.on_frame(Duration::ZERO, port_is, &frame(port, port, ARP, &[]));
    }
    switch
}

fn name(port: u8) -> String {
    format!("{}-{port}", char::from(b'a' + port))
}

fn set(switch: &mut Switch, now: Duration, from: u8, to: u8, link: Link) {
    let (from, to) = ([name(from)], [name(to)]);
    switch.change(now, &from, &to, |_| link).unwrap();
}

/// Two ports with this link from the first to the second.
fn pair(seed: u64, link: Link) -> Switch {
    let mut switch = switch(seed, 2);
    set(&mut switch, Duration::ZERO, 0, 1, link);
    switch
}

fn counts(switch: &Switch, from: u8, to: u8) -> Counts {
    let (from, to) = (name(from), name(to));
    let mut links = switch.links();
    let found = links.find(|(f, t, _, _)| *f == from && *t == to);
    found.unwrap().3
}

fn drain(switch: &mut Switch, now: Duration) -> Vec<Delivery> {
    std::iter::from_fn(|| switch.pop(now)).collect()
}

fn balanced(counts: &Counts) -> bool {
    counts.frames + counts.duplicated == counts.delivered + counts.dropped.sum() + counts.queued
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
