//! Clients of a split that stay with the revision they met. A revision has a token, the same at every
//! node, which the client brings back; it means something only among the shares of its own service's
//! split, so that nobody gets by it to where the split would not send him too.

use std::sync::Arc;

use super::{RevisionRoute, ServiceRoute, Unrouted};
use crate::model::{Name, RevisionKey};

/// How a split keeps its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    seconds: u32,
    /// One for each share, in their order.
    tokens: Vec<String>,
}

/// What a client is to bring back, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep<'a> {
    pub token: &'a str,
    pub seconds: u32,
}

/// The revision for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen<'a> {
    pub revision: &'a Arc<RevisionRoute>,
    /// What its client is told, when it did not bring it.
    pub keep: Option<Keep<'a>>,
}

impl Sticky {
    /// `None` where there is nothing to choose from.
    pub(super) fn new(
        seconds: Option<u32>,
        uid: &str,
        shares: &[(u32, Arc<RevisionRoute>)],
    ) -> Option<Self> {
        let split = shares.iter().any(|(_, r)| r.key != shares[0].1.key);
        let seconds = seconds.filter(|_| split)?;
        let tokens = shares.iter().map(|(_, r)| token(uid, &r.key)).collect();
        Some(Self { seconds, tokens })
    }
}

/// A hash of what only this service's revision is called: a service that is made anew has others.
fn token(uid: &str, revision: &RevisionKey) -> String {
    let text = format!("{uid}/{revision}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let stirred = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    format!("{:016x}", stirred ^ (stirred >> 33))
}

impl ServiceRoute {
    /// The revision for a request of a client that brought these tokens: the first one's that the split
    /// holds, else as [`Self::pick_revision`].
    ///
    /// # Errors
    /// [`Unrouted`] when no revision may take it.
    pub fn choose<'t>(
        &self,
        draw: u32,
        tag: Option<&Name>,
        mut tokens: impl Iterator<Item = &'t str>,
    ) -> Result<Chosen<'_>, Unrouted> {
        let sticky = self.sticky.as_ref().filter(|_| tag.is_none());
        let Some(sticky) = sticky else {
            let revision = self.pick_revision(draw, tag)?;
            let keep = None;
            return Ok(Chosen { revision, keep });
        };
        let held = |token: &str| sticky.tokens.iter().position(|t| t == token);
        if let Some((_, revision)) = tokens.find_map(held).and_then(|at| self.shares.get(at)) {
            let keep = None;
            return Ok(Chosen { revision, keep });
        }
        let revision = self.pick_revision(draw, None)?;
        let at = self.shares.iter().position(|(_, r)| r.key == revision.key);
        let keep = at.and_then(|at| sticky.tokens.get(at)).map(|token| Keep {
            token,
            seconds: sticky.seconds,
        });
        Ok(Chosen { revision, keep })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Routes;
    use super::super::fixture::{add, fleet, service_key, target};
    use crate::model::{RevisionState, STICKY, TrafficTarget};
    use crate::registry::State;

    /// `web` with three revisions that were ready, split like this.
    fn split(sticky: Option<&str>, traffic: Vec<TrafficTarget>, uid: &str) -> Routes {
        let mut state = State::default();
        let ready = [const { RevisionState::Ready }; 3];
        add(&mut state, "default", "web", &ready, traffic);
        let service = state.services.get_mut(&service_key("default", "web"));
        let meta = &mut service.unwrap().meta;
        meta.uid = uid.to_owned();
        let value = sticky.map(|text| (STICKY.to_owned(), text.to_owned()));
        meta.annotations.extend(value);
        Routes::build(&state, &fleet(), "edge.test")
    }

    /// The revision's number, and the token that its client is told.
    fn chosen(routes: &Routes, host: &str, draw: u32, tokens: &[&str]) -> (String, Option<String>) {
        let found = routes.lookup(host, "/").unwrap();
        let tokens = tokens.iter().copied();
        let chosen = found.service.choose(draw, found.tag, tokens).unwrap();
        let name = chosen.revision.key.name.as_str().replace("web-0000", "");
        (name, chosen.keep.map(|k| k.token.to_owned()))
    }

    const WEB: &str = "web.edge.test";

    fn halves() -> Vec<TrafficTarget> {
        vec![
            target(Some("web-00001"), 50, None),
            target(Some("web-00002"), 50, Some("next")),
            target(Some("web-00003"), 0, Some("try")),
        ]
    }

    #[test]
    fn a_client_stays_with_the_revision_it_met() {
        let routes = split(Some("on"), halves(), "u");
        let (one, first) = chosen(&routes, WEB, 0, &[]);
        let (two, second) = chosen(&routes, WEB, 99, &[]);
        assert_eq!((one.as_str(), two.as_str()), ("1", "2"));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_ne!(first, second);
        for draw in 0..100 {
            let stay = |tokens: &[&str]| chosen(&routes, WEB, draw, tokens);
            assert_eq!(stay(&[&first]), ("1".to_owned(), None));
            assert_eq!(stay(&[&second]), ("2".to_owned(), None));
            assert_eq!(stay(&["nobodys", &second]), ("2".to_owned(), None));
        }
        // Another node has the same tokens.
        let again = split(Some("1h"), halves(), "u");
        assert_eq!(chosen(&again, WEB, 99, &[&first]), ("1".to_owned(), None));
        let found = again.lookup(WEB, "/").unwrap().service;
        let keep = found.choose(0, None, std::iter::empty()).unwrap().keep;
        assert_eq!(keep.map(|k| (k.seconds, k.token)), Some((3600, &*first)));
    }

    #[test]
    fn a_token_leads_nowhere_but_into_the_split() {
        let routes = split(Some("on"), halves(), "u");
        // What the third revision's token would be, where it has a share.
        let wider = vec![
            target(Some("web-00001"), 50, None),
            target(Some("web-00003"), 50, None),
        ];
        let wider = split(Some("on"), wider, "u");
        let third = chosen(&wider, WEB, 99, &[]).1.unwrap();
        let second = chosen(&routes, WEB, 99, &[]).1.unwrap();
        let before = chosen(&split(Some("on"), halves(), "v"), WEB, 99, &[]);
        let foreign = before.1.unwrap();
        for token in [
            third.as_str(),
            &foreign,
            "",
            "web-00003",
            "0000000000000000",
        ] {
            let (revision, told) = chosen(&routes, WEB, 99, &[token]);
            assert_eq!((revision, told), ("2".to_owned(), Some(second.clone())));
        }
        assert_eq!(
            chosen(&wider, WEB, 0, &[&second]).0,
            "1",
            "it left the split"
        );
    }

    #[test]
    fn nobody_is_kept_who_did_not_ask_for_it_or_has_no_choice() {
        let whole = || vec![target(None, 100, None)];
        let same = || vec![target(None, 60, None), target(Some("web-00003"), 40, None)];
        let table = [
            (None, halves(), WEB, "1"),
            (Some("off"), halves(), WEB, "1"),
            (Some("on"), whole(), WEB, "3"),
            (Some("on"), same(), WEB, "3"),
            (Some("on"), vec![], WEB, "3"),
            (Some("on"), halves(), "next-web.edge.test", "2"),
            (Some("on"), halves(), "try-web.edge.test", "3"),
        ];
        for (sticky, traffic, host, want) in table {
            let told = format!("{sticky:?} {host}");
            let routes = split(sticky, traffic, "u");
            assert_eq!(
                chosen(&routes, host, 0, &[]),
                (want.to_owned(), None),
                "{told}"
            );
        }
    }
}
