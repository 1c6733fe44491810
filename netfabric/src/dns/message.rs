//! A query's bytes to its reply's bytes: header rules, EDNS, client subnet, size. Pure but for
//! what the zone asks. Never fails and never panics on what it is given: bytes that deserve no
//! reply get none.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};

use super::subnets::Cidr;
use super::zone::{Reply, Zone};

/// What fits a packet that is not fragmented on any path (DNS flag day 2020).
const EDNS_PAYLOAD: u16 = 1232;
/// The limit without EDNS (RFC 1035).
const PLAIN_PAYLOAD: u16 = 512;
const HEADER_BYTES: usize = 12;
/// Flags in a header's third byte.
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
/// A query carries OPT and perhaps a signature, no more; a count is not worth decoding for.
const MAX_ADDITIONALS: u16 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    Udp,
    Tcp,
}

/// The counts a header claims, read before anything is allocated for them.
struct Claimed {
    id: u16,
    response: bool,
    op_code: OpCode,
    questions: u16,
    records: u16,
    additionals: u16,
}

impl Claimed {
    fn read(bytes: &[u8]) -> Option<Self> {
        let field = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let header = Self {
            id: field(0)?,
            response: bytes.get(2)? & RESPONSE != 0,
            op_code: OpCode::from_u8(bytes.get(2)? >> 3 & 0x0f),
            questions: field(4)?,
            records: field(6)?.saturating_add(field(8)?),
            additionals: field(10)?,
        };
        (bytes.len() >= HEADER_BYTES).then_some(header)
    }
}

/// The reply to `bytes`, or `None` when it deserves none (too short, itself a reply).
pub(super) fn reply(zone: &Zone, bytes: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
    let claimed = Claimed::read(bytes)?;
    if claimed.response {
        return None;
    }
    let bare = |code| {
        Message::error_msg(claimed.id, claimed.op_code, code)
            .to_vec()
            .ok()
    };
    if claimed.op_code != OpCode::Query {
        return bare(ResponseCode::NotImp);
    }
    let plausible = claimed.questions == 1 && claimed.records == 0;
    if !plausible || claimed.additionals > MAX_ADDITIONALS {
        return bare(ResponseCode::FormErr);
    }
    let Ok(query) = Message::from_vec(bytes) else {
        return bare(ResponseCode::FormErr);
    };
    let limit = match (carrier, &query.edns) {
        (Carrier::Tcp, _) => u16::MAX,
        (Carrier::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_PAYLOAD, EDNS_PAYLOAD),
        (Carrier::Udp, None) => PLAIN_PAYLOAD,
    };
    encode(&answer(zone, &query), usize::from(limit)).or_else(|| bare(ResponseCode::ServFail))
}

fn answer(zone: &Zone, query: &Message) -> Message {
    let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.recursion_available = false;
    message.metadata.authentic_data = false;
    message.queries.clone_from(&query.queries);
    if query.version() > 0 {
        message.metadata.response_code = ResponseCode::BADVERS;
        message.edns = query.edns.as_ref().map(|asked| edns(asked, None, 1));
        return message;
    }
    let subnet = match client_subnet(query) {
        Ok(subnet) => subnet,
        Err(code) => {
            message.metadata.response_code = code;
            message.edns = query.edns.as_ref().map(|asked| edns(asked, None, 0));
            return message;
        }
    };
    let (client, scope) = zone.client(subnet.map(|s| (s.addr(), s.source_prefix())));
    let resolved = message.queries.first().map(|q| zone.resolve(q, &client));
    let resolved = resolved.unwrap_or_else(Reply::refused);
    let scope = if resolved.tailored { scope } else { 0 };
    let echo = subnet.map(|s| ClientSubnet::new(s.addr(), s.source_prefix(), scope));
    message.edns = query.edns.as_ref().map(|asked| edns(asked, echo, 0));
    message.metadata.response_code = resolved.code;
    message.metadata.authoritative = resolved.authoritative;
    message.answers = resolved.answers;
    message.authorities = resolved.authorities;
    message.additionals = resolved.additionals;
    message
}

/// The client subnet option, checked as RFC 7871 section 6 asks.
fn client_subnet(query: &Message) -> Result<Option<ClientSubnet>, ResponseCode> {
    let option = query
        .edns
        .as_ref()
        .and_then(|edns| edns.option(EdnsCode::Subnet));
    let Some(EdnsOption::Subnet(subnet)) = option else {
        return Ok(None);
    };
    let clean = Cidr::new(subnet.addr(), subnet.source_prefix())
        .is_some_and(|cidr| cidr.to_string() == written(subnet));
    if clean && subnet.scope_prefix() == 0 {
        Ok(Some(*subnet))
    } else {
        Err(ResponseCode::FormErr)
    }
}

/// As a network is written; differs from the parsed network's text when host bits are set.
fn written(subnet: &ClientSubnet) -> String {
    let address: IpAddr = subnet.addr();
    format!("{address}/{}", subnet.source_prefix())
}

fn edns(asked: &Edns, subnet: Option<ClientSubnet>, rcode_high: u8) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_PAYLOAD);
    edns.set_rcode_high(rcode_high);
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    if let Some(subnet) = subnet {
        edns.options_mut().insert(EdnsOption::Subnet(subnet));
    }
    edns
}

/// The bytes; when they are more than `limit`, an empty reply that says "ask over TCP". Glue is
/// given up first: it is a courtesy.
fn encode(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= limit {
        return Some(whole);
    }
    let mut shorter = message.clone();
    shorter.additionals.clear();
    let bytes = shorter.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    shorter.answers.clear();
    shorter.authorities.clear();
    shorter.metadata.truncation = true;
    shorter.to_vec().ok()
}

/// "Nobody could say", to a query that was to be passed on.
pub(super) fn unanswered(query: &[u8]) -> Option<Vec<u8>> {
    let claimed = Claimed::read(query)?;
    let code = ResponseCode::ServFail;
    let message = Message::error_msg(claimed.id, claimed.op_code, code);
    message.to_vec().ok().filter(|_| !claimed.response)
}

/// "Ask over TCP", without a look at what is asked: no larger than the query.
pub(super) fn refer_to_tcp(query: &[u8]) -> Option<Vec<u8>> {
    let claimed = Claimed::read(query)?;
    if claimed.response || claimed.questions != 1 {
        return None;
    }
    let name = query[HEADER_BYTES..].iter().position(|byte| *byte == 0)?;
    // The name's end, its type and its class.
    let mut reply = query.get(..HEADER_BYTES + name + 5)?.to_vec();
    reply[2] |= RESPONSE | TRUNCATED;
    reply[3] = 0;
    // No answers, authorities or additional records.
    reply[6..HEADER_BYTES].fill(0);
    Some(reply)
}
