//! What the switch does with ports, settings and memory, whatever its links do.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::super::mobile_up;
use super::super::switch::{Port, Switch};
use super::{
    END, EVERYONE, Link, Preset, balanced, counts, drain, ip, ms, name, pair, set, switch,
};

#[test]
fn a_frame_goes_where_its_receiver_was_seen_and_else_to_all_others() {
    let mut switch = Switch::new(1, Preset::Lan);
    let [a, b, c] = ["a", "b", "c"].map(|name| switch.plug(name).unwrap());
    let mut to = |from: Port, frame: &[u8]| -> Vec<Port> {
        switch.on_frame(Duration::ZERO, from, frame);
        drain(&mut switch, Duration::ZERO)
            .iter()
            .map(|d| d.to)
            .collect()
    };
    assert_eq!(to(a, &ip(1, 0, 10)), [b, c], "nobody has heard of 1");
    assert_eq!(to(b, &ip(0, 1, 10)), [a]);
    assert_eq!(to(a, &ip(1, 0, 10)), [b]);
    assert_eq!(to(b, &ip(EVERYONE, 1, 10)), [a, c]);
    assert_eq!(to(c, &ip(1, 1, 10)), [] as [Port; 0], "1 is behind c now");
    assert_eq!(to(a, &ip(1, 0, 10)), [c]);
    assert_eq!(to(a, &[0; 13]), [] as [Port; 0], "too short to be a frame");
}

#[test]
fn an_unplugged_port_gets_nothing_and_comes_back_as_it_was() {
    let mut switch = pair(1, Link::slow(10.0));
    switch.on_frame(ms(0), Port(0), &ip(1, 0, 10));
    switch.unplug(&name(1)).unwrap();
    assert!(switch.unplug(&name(1)).is_err());
    assert_eq!(drain(&mut switch, ms(20)), []);
    assert_eq!(counts(&switch, 0, 1).dropped.gone, 1);
    switch.on_frame(ms(30), Port(0), &ip(1, 0, 10));
    assert_eq!(switch.poll_timeout(), None, "nobody is there");
    assert_eq!(switch.plug(&name(1)).unwrap(), Port(1));
    assert!(switch.plug(&name(1)).is_err());
    assert_eq!(switch.link(&name(0), &name(1)).unwrap(), Link::slow(10.0));
    switch.on_frame(ms(40), Port(0), &ip(1, 0, 10));
    let [delivery] = <[_; 1]>::try_from(drain(&mut switch, ms(50))).unwrap();
    switch.on_refused(&delivery);
    let seen = counts(&switch, 0, 1);
    assert_eq!((seen.delivered, seen.dropped.gone), (0, 2));
    assert!(balanced(&seen), "{seen:?}");
}

#[test]
fn a_reset_gives_back_the_preset() {
    let mut switch = Switch::new(1, Preset::Regions);
    for name in ["par-1", "par-2", "fra-1", "registry"] {
        switch.plug(name).unwrap();
    }
    let before: Vec<_> = switch.links().map(|(_, _, link, _)| link).collect();
    let all = ["par-1", "fra-1", "registry"].map(str::to_owned);
    switch.change(ms(0), &all, &all, |_| mobile_up()).unwrap();
    assert_eq!(switch.link("fra-1", "registry").unwrap(), mobile_up());
    switch.reset(ms(0));
    let after: Vec<_> = switch.links().map(|(_, _, link, _)| link).collect();
    assert_eq!(before, after);
}

#[test]
fn impossible_links_are_refused_and_change_nothing() {
    let mut switch = switch(1, 2);
    let both = [name(0), name(1)];
    let default = Link::default();
    for link in [
        Link {
            delay: -1.0,
            ..default
        },
        Link {
            delay: f64::NAN,
            ..default
        },
        Link {
            jitter: 1e9,
            ..default
        },
        Link {
            loss: 1.1,
            ..default
        },
        Link {
            corrupt: -0.1,
            ..default
        },
        Link {
            rate: Some(0),
            ..default
        },
    ] {
        let refused = switch.change(ms(0), &both, &both, |_| link);
        assert!(refused.is_err(), "{link:?}");
    }
    let stranger = [name(0), "nobody".to_owned()];
    let refused = switch.change(ms(0), &both, &stranger, |_| Link::slow(1.0));
    assert!(refused.is_err());
    assert_eq!(switch.link(&name(1), &name(0)).unwrap(), default);
}

#[test]
fn what_is_held_is_bounded() {
    let mut switch = pair(1, Link::slow(60_000.0));
    let large = ip(1, 0, 16_000);
    for _ in 0..10_000 {
        switch.on_frame(ms(0), Port(0), &large);
    }
    let seen = counts(&switch, 0, 1);
    assert!(
        seen.queued_bytes <= 64 << 20 && seen.dropped.memory > 0,
        "{seen:?}"
    );
    assert_eq!(drain(&mut switch, END).len() as u64, seen.queued);
    switch.on_frame(END, Port(0), &large);
    assert_eq!(counts(&switch, 0, 1).queued, 1, "there is room again");
}

/// No frame is lost without being counted, whatever happens to links and ports.
#[test]
fn frames_are_conserved() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut switch = switch(seed, 4);
        for step in 0..2000 {
            let (from, to) = (rng.random_range(0..4), rng.random_range(0..4));
            match rng.random_range(0..100) {
                0..4 => set(&mut switch, ms(step), from, to, any_link(&mut rng)),
                4 => drop(switch.unplug(&name(from))),
                5 => drop(switch.plug(&name(from))),
                6 => switch.reset(ms(step)),
                7..10 => switch.on_frame(ms(step), Port(from.into()), &ip(EVERYONE, from, 60)),
                _ => switch.on_frame(ms(step), Port(from.into()), &ip(to, from, 700)),
            }
            if let Some(delivery) = switch.pop(ms(step)).filter(|_| rng.random_bool(0.1)) {
                switch.on_refused(&delivery);
            }
            for (from, to, _, counts) in switch.links() {
                assert!(balanced(&counts), "seed {seed}, {from} to {to}: {counts:?}");
            }
        }
        drain(&mut switch, END);
        assert!(
            switch
                .links()
                .all(|(.., c)| c.queued == 0 && c.queued_bytes == 0)
        );
    }
}

fn any_link(rng: &mut StdRng) -> Link {
    Link {
        delay: rng.random_range(0.0..50.0),
        jitter: rng.random_range(0.0..50.0),
        loss: rng.random_range(0.0..0.5),
        duplicate: rng.random_range(0.0..0.5),
        corrupt: rng.random_range(0.0..0.5),
        reorder: rng.random_range(0.0..0.5),
        rate: rng
            .random_bool(0.5)
            .then(|| rng.random_range(10_000..10_000_000)),
        queue: rng.random_range(0..100_000),
        mtu: rng.random_bool(0.2).then_some(600),
        up: rng.random_bool(0.9),
    }
}
