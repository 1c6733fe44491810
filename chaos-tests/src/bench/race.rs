//! Who is measured when: every system once a round, in an order that moves on by one each round, so
//! that none is always the first after another.

use anyhow::{Context as _, Result};

use super::board::{Board, Reading};

/// A system under measurement, ready to be asked again and again.
pub trait Contestant {
    fn name(&self) -> &'static str;
    /// One sample of a case.
    fn take(&mut self, case: &str) -> Result<Vec<Reading>>;
}

/// Lets all take their turns at each case.
pub fn race(
    board: &mut Board,
    cases: &[&str],
    rounds: usize,
    contestants: &mut [Box<dyn Contestant + '_>],
) -> Result<()> {
    for case in cases {
        for round in 0..rounds {
            for turn in turns(contestants.len(), round) {
                let contestant = &mut contestants[turn];
                let name = contestant.name();
                let readings = contestant
                    .take(case)
                    .with_context(|| format!("{name}, {case}, round {round}"))?;
                for reading in readings {
                    board.add(case, name, round, reading);
                }
            }
        }
    }
    Ok(())
}

fn turns(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| (place + round) % count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::board::RPS;

    struct Fake(&'static str, std::rc::Rc<std::cell::RefCell<Vec<String>>>);

    impl Contestant for Fake {
        fn name(&self) -> &'static str {
            self.0
        }

        fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
            self.1.borrow_mut().push(format!("{}{case}", self.0));
            Ok(vec![RPS.of(1.0)])
        }
    }

    #[test]
    fn the_order_moves_on_by_one_each_round() {
        let seen = std::rc::Rc::default();
        let fakes = ["a", "b", "c"].map(|name| Fake(name, std::rc::Rc::clone(&seen)));
        let mut contestants = fakes.map(|f| Box::new(f) as Box<dyn Contestant>);
        let mut board = Board::new("proxy");
        race(&mut board, &["1", "2"], 2, &mut contestants).unwrap();
        let expected = [
            "a1", "b1", "c1", "b1", "c1", "a1", "a2", "b2", "c2", "b2", "c2", "a2",
        ];
        assert_eq!(*seen.borrow(), expected);
        assert_eq!(board.json().unwrap().lines().count(), 6);
    }
}
