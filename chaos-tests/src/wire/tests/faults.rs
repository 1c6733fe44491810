//! What one link does to frames: each fault by itself, in its direction and in its bounds.

use std::time::Duration;

use super::super::mobile_up;
use super::super::switch::{Delivery, Port};
use super::{
    ARP, Counts, END, IPV4, Link, balanced, counts, drain, frame, ip, ms, name, pair, set,
};

#[test]
fn a_link_without_faults_passes_frames_unchanged_and_at_once() {
    let mut switch = pair(1, Link::default());
    let sent = frame(1, 0, IPV4, b"hello");
    switch.on_frame(ms(5), Port(0), &sent);
    assert_eq!(switch.poll_timeout(), Some(ms(5)));
    let [delivery] = <[_; 1]>::try_from(drain(&mut switch, ms(5))).unwrap();
    assert_eq!(delivery.frame, sent);
    assert_eq!(switch.poll_timeout(), None, "idle is silent");
}

#[test]
fn a_delay_holds_for_its_direction_alone() {
    let mut switch = pair(1, Link::slow(25.0));
    switch.on_frame(ms(5), Port(0), &ip(1, 0, 10));
    switch.on_frame(ms(5), Port(1), &ip(0, 1, 10));
    assert_eq!(drain(&mut switch, ms(5)).len(), 1, "the way back is free");
    assert_eq!(switch.poll_timeout(), Some(ms(30)));
    assert_eq!(drain(&mut switch, ms(29)), []);
    assert_eq!(drain(&mut switch, ms(30)).len(), 1);
}

/// Everything at once; returns when which bytes arrived.
fn run_of(seed: u64) -> Vec<(Duration, Vec<u8>)> {
    let link = Link {
        loss: 0.2,
        duplicate: 0.1,
        corrupt: 0.3,
        reorder: 0.1,
        ..mobile_up()
    };
    let mut switch = pair(seed, link);
    let mut seen = Vec::new();
    for i in 0..2000 {
        switch.on_frame(ms(i), Port(0), &ip(1, 0, 200));
        seen.extend(
            drain(&mut switch, ms(i))
                .into_iter()
                .map(|d| (ms(i), d.frame)),
        );
    }
    seen
}

#[test]
fn a_seed_gives_the_same_run_again() {
    assert_eq!(run_of(7), run_of(7));
    assert_ne!(run_of(7), run_of(8));
}

#[test]
fn shares_are_what_the_link_says() {
    const FRAMES: u32 = 100_000;
    let link = Link {
        loss: 0.1,
        duplicate: 0.05,
        corrupt: 0.02,
        ..Link::default()
    };
    let mut switch = pair(3, link);
    let mut delivered = 0;
    for _ in 0..FRAMES {
        switch.on_frame(ms(0), Port(0), &ip(1, 0, 50));
        delivered += drain(&mut switch, ms(0)).len() as u64;
    }
    let seen = counts(&switch, 0, 1);
    // Five standard deviations are less than half a percent.
    let near = |seen: u64, share: f64, of: f64| {
        let seen = f64::from(u32::try_from(seen).unwrap());
        (seen / of - share).abs() < 0.005
    };
    let all = f64::from(FRAMES);
    assert!(near(seen.dropped.loss, 0.1, all), "{seen:?}");
    assert!(near(seen.duplicated, 0.05 * 0.9, all), "{seen:?}");
    assert!(near(seen.corrupted, 0.02, all), "{seen:?}");
    assert_eq!(seen.delivered, delivered);
    assert!(balanced(&seen), "{seen:?}");
}

/// Numbered frames a millisecond apart; returns the numbers as they arrived.
fn order(link: Link) -> (Vec<u32>, Counts) {
    let mut switch = pair(5, link);
    for i in 0..1000u32 {
        let numbered = frame(1, 0, IPV4, &i.to_be_bytes());
        switch.on_frame(ms(i.into()), Port(0), &numbered);
    }
    let number = |d: Delivery| u32::from_be_bytes(d.frame[14..].try_into().unwrap());
    let seen = drain(&mut switch, END).into_iter().map(number).collect();
    (seen, counts(&switch, 0, 1))
}

#[test]
fn jitter_keeps_the_order_and_reorder_breaks_it() {
    let link = Link {
        delay: 50.0,
        jitter: 40.0,
        ..Link::default()
    };
    let (seen, counted) = order(link);
    assert!(seen.is_sorted() && seen.len() == 1000);
    assert_eq!(counted.reordered, 0);
    let (seen, counted) = order(Link {
        reorder: 0.1,
        ..link
    });
    let overtakes = seen.windows(2).filter(|w| w[0] > w[1]).count();
    assert!(overtakes > 20, "{overtakes}");
    assert!((50..200).contains(&counted.reordered), "{counted:?}");
}

#[test]
fn jitter_moves_frames_within_its_bounds() {
    let link = Link {
        delay: 50.0,
        jitter: 10.0,
        ..Link::default()
    };
    let mut switch = pair(5, link);
    let mut travelled = Vec::new();
    for i in 0..200 {
        let now = Duration::from_secs(i);
        switch.on_frame(now, Port(0), &ip(1, 0, 10));
        travelled.push(switch.poll_timeout().unwrap().saturating_sub(now));
        drain(&mut switch, now + ms(60));
    }
    let (min, max) = (
        travelled.iter().min().unwrap(),
        travelled.iter().max().unwrap(),
    );
    assert!(*min >= ms(40) && *min < ms(42), "{min:?}");
    assert!(*max <= ms(60) && *max > ms(58), "{max:?}");
}

#[test]
fn a_rate_bounds_what_leaves_and_what_waits() {
    const RATE: u64 = 8_000_000; // A byte each microsecond.
    let link = Link {
        rate: Some(RATE),
        queue: 20_000,
        ..Link::default()
    };
    let mut switch = pair(1, link);
    let length = ip(1, 0, 986).len() as u64;
    assert_eq!(length, 1000);
    let mut out = 0;
    for i in 0..5000 {
        // Ten times what the link takes.
        let now = Duration::from_micros(i * 100);
        switch.on_frame(now, Port(0), &ip(1, 0, 986));
        out += drain(&mut switch, now).len() as u64 * length;
        let micros = u64::try_from(now.as_micros()).unwrap();
        assert!(out <= micros, "{out} bytes in {micros} µs");
        let waiting = counts(&switch, 0, 1).queued_bytes;
        assert!(waiting <= u64::from(link.queue), "{waiting} bytes wait");
    }
    assert!(out > 450_000, "the link is used: {out} of 500,000 bytes");
    let seen = counts(&switch, 0, 1);
    assert!(seen.dropped.rate > 4000 && balanced(&seen), "{seen:?}");
    assert_eq!(drain(&mut switch, ms(500 + 20)).len() as u64, seen.queued);
}

#[test]
fn corruption_flips_one_bit_behind_the_header_of_ip_packets() {
    let link = Link {
        corrupt: 1.0,
        ..Link::default()
    };
    let mut switch = pair(1, link);
    for length in [1, 20, 1500] {
        let sent = ip(1, 0, length);
        switch.on_frame(ms(0), Port(0), &sent);
        let got = switch.pop(ms(0)).unwrap().frame;
        let flipped = sent.iter().zip(&got).map(|(s, g)| (s ^ g).count_ones());
        assert_eq!(flipped.sum::<u32>(), 1, "{length}");
        assert_eq!(sent[..14], got[..14], "{length}");
    }
    let arp = frame(1, 0, ARP, &[0; 28]);
    switch.on_frame(ms(0), Port(0), &arp);
    assert_eq!(switch.pop(ms(0)).unwrap().frame, arp);
    assert_eq!(counts(&switch, 0, 1).corrupted, 3);
}

#[test]
fn packets_above_the_mtu_vanish() {
    let link = Link {
        mtu: Some(1200),
        ..Link::default()
    };
    for (sent, passes) in [
        (ip(1, 0, 1200), true),
        (ip(1, 0, 1201), false),
        (frame(1, 0, [0x86, 0xdd], &[0; 1201]), false),
        (frame(1, 0, ARP, &[0; 1201]), true),
    ] {
        let mut switch = pair(1, link);
        switch.on_frame(ms(0), Port(0), &sent);
        assert_eq!(switch.pop(ms(0)).is_some(), passes, "{:?}", &sent[..14]);
        assert_eq!(counts(&switch, 0, 1).dropped.mtu, u64::from(!passes));
    }
}

#[test]
fn a_cut_stops_one_direction_and_what_is_on_its_way() {
    let mut switch = pair(1, Link::slow(10.0));
    switch.on_frame(ms(0), Port(0), &ip(1, 0, 10));
    let (a, b) = ([name(0)], [name(1)]);
    let up = |up| move |link| Link { up, ..link };
    switch.change(ms(1), &a, &b, up(false)).unwrap();
    switch.on_frame(ms(2), Port(0), &ip(1, 0, 10));
    switch.on_frame(ms(2), Port(1), &ip(0, 1, 10));
    let passed: Vec<_> = drain(&mut switch, END).iter().map(|d| d.to).collect();
    assert_eq!(passed, [Port(0)]);
    assert_eq!(counts(&switch, 0, 1).dropped.down, 2);
    switch.change(ms(3), &a, &b, up(true)).unwrap();
    switch.on_frame(ms(4), Port(0), &ip(1, 0, 10));
    assert_eq!(switch.poll_timeout(), Some(ms(14)), "the delay stayed");
}

#[test]
fn a_healed_link_is_a_good_one_at_once_and_keeps_the_order() {
    let bad = Link {
        delay: 30_000.0,
        rate: Some(8000),
        ..Link::default()
    };
    let mut switch = pair(1, bad);
    for i in 0..50u8 {
        switch.on_frame(ms(0), Port(0), &frame(1, 0, IPV4, &[i]));
    }
    let good = Link {
        rate: Some(1_000_000_000),
        ..Link::slow(2.0)
    };
    set(&mut switch, ms(100), 0, 1, good);
    for i in 50..100u8 {
        switch.on_frame(ms(100), Port(0), &frame(1, 0, IPV4, &[i]));
    }
    let seen: Vec<_> = drain(&mut switch, ms(103))
        .iter()
        .map(|d| d.frame[14])
        .collect();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}
