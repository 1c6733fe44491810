//! The one place that knows how a value becomes bytes between nodes and on disk.
//!
//! A version byte comes first; a decode takes the whole input, refuses leftovers, and never
//! allocates by a length it has not seen the bytes for.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// First byte of everything encoded here.
pub const VERSION: u8 = 1;
/// No single value is larger: bigger things are streamed.
pub const MAX_LEN: usize = 64 * 1024 * 1024;

/// Why bytes and value could not be turned into each other.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("encoded, it has {len} bytes; at most {limit} are allowed")]
    TooLarge { len: usize, limit: usize },
    #[error("it is empty")]
    Empty,
    #[error("it is of version {0}; this node speaks version {VERSION}")]
    Version(u8),
    #[error("{0} bytes are left over after the value")]
    Trailing(usize),
    #[error("cannot encode: {0}")]
    Encode(#[source] Box<bincode::error::EncodeError>),
    #[error("malformed: {0}")]
    Decode(#[source] Box<bincode::error::DecodeError>),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_LEN>()
}

/// Encodes `value`, at most [`MAX_LEN`] bytes.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, config())
        .map_err(|error| CodecError::Encode(Box::new(error)))?;
    within(bytes.len(), MAX_LEN)?;
    Ok(bytes)
}

/// Decodes a value that fills `bytes` exactly.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_within(bytes, MAX_LEN)
}

/// [`decode`] with a tighter limit.
pub fn decode_within<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    within(bytes.len(), limit.min(MAX_LEN))?;
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    let (value, used) = bincode::serde::decode_from_slice(body, config())
        .map_err(|error| CodecError::Decode(Box::new(error)))?;
    match body.len() - used {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}

fn within(len: usize, limit: usize) -> Result<(), CodecError> {
    if len > limit {
        Err(CodecError::TooLarge { len, limit })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::peer::{PeerRequest, PeerResponse};

    #[test]
    fn what_is_not_exactly_one_value_is_refused() {
        let good = encode(&(7u64, "hello")).unwrap();
        assert_eq!(
            decode::<(u64, String)>(&good).unwrap(),
            (7, "hello".to_owned())
        );
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(
            decode::<(u64, String)>(&longer),
            Err(CodecError::Trailing(1))
        ));
        let mut other = good.clone();
        other[0] = 9;
        assert!(matches!(
            decode::<(u64, String)>(&other),
            Err(CodecError::Version(9))
        ));
        assert!(matches!(decode::<u64>(&[]), Err(CodecError::Empty)));
        let error = decode_within::<(u64, String)>(&good, 3).unwrap_err();
        assert!(matches!(error, CodecError::TooLarge { .. }), "{error}");
        assert!(decode::<(u64, String)>(&good[..good.len() - 1]).is_err());
    }

    #[test]
    fn a_length_that_is_a_lie_allocates_nothing() {
        // A vector, and a text, that claim 2^60 elements and bring none.
        let mut lie = vec![VERSION, 253];
        lie.extend((1u64 << 60).to_le_bytes());
        assert!(decode::<Vec<u8>>(&lie).is_err());
        assert!(decode::<String>(&lie).is_err());
        assert!(decode::<Vec<Vec<u64>>>(&lie).is_err());
    }

    proptest! {
        #[test]
        fn junk_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<PeerRequest>(&bytes);
            let _ = decode::<PeerResponse>(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = decode::<PeerRequest>(&bytes);
            let _ = decode::<PeerResponse>(&bytes);
            let _ = decode::<scheduler::model::NodeRecord>(&bytes);
        }

        #[test]
        fn a_value_comes_back(token_hash in ".{0,80}", subject in ".{0,80}", request: Vec<u8>) {
            let json = request.clone();
            let request = PeerRequest::Join { token_hash, request };
            prop_assert_eq!(&decode::<PeerRequest>(&encode(&request).unwrap()).unwrap(), &request);
            let request = PeerRequest::Explain { subject };
            prop_assert_eq!(&decode::<PeerRequest>(&encode(&request).unwrap()).unwrap(), &request);
            let response = PeerResponse::Explained { json };
            prop_assert_eq!(decode::<PeerResponse>(&encode(&response).unwrap()).unwrap(), response);
        }
    }
}
