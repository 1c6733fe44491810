//! The part of `crate::fuzz` that nodes say to each other.

use std::fmt::Debug;

use futures::executor::block_on;
use scheduler::model::{InstanceId, Name, NodeRecord, RevisionKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{decode, encode};
use super::frame::read_frame;
use super::image::{ImageAnswer, ImageRequest};
use super::passage::{FRAME_LIMIT, OpenPassage, PassageAnswer};
use super::peer::{PeerRequest, PeerResponse};

pub(crate) fn spoken() -> Vec<Vec<u8>> {
    let wish = Name::new("web-00001").ok().map(|name| OpenPassage {
        revision: RevisionKey {
            namespace: Name::default_namespace(),
            name,
        },
        port: 5432,
        udp: false,
        idle_seconds: 60,
    });
    let answer = PassageAnswer::Open(InstanceId("web-00001-a".to_owned()));
    let all = [wish.and_then(|w| encode(&w).ok()), encode(&answer).ok()];
    let framed = |bytes: &Vec<u8>| {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&length[..], bytes].concat()
    };
    let all: Vec<Vec<u8>> = all.into_iter().flatten().collect();
    let frames: Vec<Vec<u8>> = all.iter().map(framed).collect();
    [all, frames].concat()
}

/// A word is refused, or means one thing; a frame has no more than it may.
pub(crate) fn words(bytes: &[u8]) {
    one::<PeerRequest>(bytes);
    one::<PeerResponse>(bytes);
    one::<OpenPassage>(bytes);
    one::<PassageAnswer>(bytes);
    one::<ImageRequest>(bytes);
    one::<ImageAnswer>(bytes);
    one::<NodeRecord>(bytes);
    let mut rest = bytes;
    while let Ok(Some(frame)) = block_on(read_frame(&mut rest, FRAME_LIMIT)) {
        assert!(frame.len() <= FRAME_LIMIT);
        one::<OpenPassage>(&frame);
    }
}

fn one<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = decode::<T>(bytes) {
        let again = encode(&value).and_then(|bytes| decode::<T>(&bytes));
        assert_eq!(again.ok(), Some(value));
    }
}
