//! From a question to records: what the zone says, without bytes or sockets. Pure but for asking
//! [`Answers`].

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::{Answers, Cidr, Client, DnsConfig, DnsError, subnets};

/// Secondaries do not exist (transfers are refused), so these only have to be sane.
const REFRESH_SECONDS: i32 = 60;
const RETRY_SECONDS: i32 = 30;
const EXPIRE_SECONDS: i32 = 86_400;
/// Name servers and their addresses change with the fleet, not with load.
const NAME_SERVER_TTL: u32 = 300;
/// Texts are for one look.
const TEXT_TTL: u32 = 1;
/// RFC 8482: the minimal answer to ANY may be kept long.
const ANY_TTL: u32 = 3600;

/// The sections of a reply.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// The answer differs between clients: a subnet given in the query was looked at.
    pub tailored: bool,
}

impl Reply {
    pub fn refused() -> Self {
        Self {
            code: ResponseCode::Refused,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            tailored: false,
        }
    }

    fn found(answers: Vec<Record>) -> Self {
        Self {
            code: ResponseCode::NoError,
            authoritative: true,
            answers,
            ..Self::refused()
        }
    }
}

/// The zone and where it asks.
pub(super) struct Zone {
    origin: Name,
    ttl: u32,
    subnets: Vec<(Cidr, scheduler::model::Name)>,
    answers: Arc<dyn Answers>,
}

/// What a name of the zone is.
enum Owner {
    Apex,
    NameServer(Vec<IpAddr>),
    Service,
    Texts(Vec<String>),
    /// Exists only because something exists below it.
    Empty,
    Nothing,
}

impl Zone {
    pub fn new(config: &DnsConfig, answers: Arc<dyn Answers>) -> Result<Self, DnsError> {
        let mut origin = Name::from_ascii(&config.origin)
            .map_err(|source| DnsError::Origin {
                origin: config.origin.clone(),
                source,
            })?
            .to_lowercase();
        origin.set_fqdn(true);
        Ok(Self {
            origin,
            ttl: config.ttl,
            subnets: config.subnets.clone(),
            answers,
        })
    }

    /// The operator's region for a client subnet, and how much of the subnet that depends on.
    pub fn client(&self, subnet: Option<(IpAddr, u8)>) -> (Client, u8) {
        let Some((address, length)) = subnet else {
            return (Client::default(), 0);
        };
        let found = subnets::longest_match(&self.subnets, address, length);
        let client = Client {
            subnet: (length > 0).then_some(address),
            region: found.map(|(_, region)| region.clone()),
        };
        // No entry matched: the answer might still depend on all that was told.
        (client, found.map_or(length, |(cidr, _)| cidr.length()))
    }

    pub fn resolve(&self, query: &Query, client: &Client) -> Reply {
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || transfer || !self.origin.zone_of(query.name()) {
            return Reply::refused();
        }
        let name = self.relative(query.name());
        match self.owner(&name) {
            Owner::Nothing => self.negative(ResponseCode::NXDomain),
            Owner::Empty => self.negative(ResponseCode::NoError),
            _ if query.query_type() == RecordType::ANY => Reply::found(vec![any(query.name())]),
            Owner::Apex => self.apex(query),
            Owner::NameServer(addresses) => {
                let records = address_records(query, NAME_SERVER_TTL, &addresses);
                self.found_or_no_data(records)
            }
            Owner::Texts(texts) => {
                let asked = query.query_type() == RecordType::TXT;
                let texts = texts.into_iter().filter(|_| asked);
                let records = texts.map(|t| text(query.name(), t)).collect();
                self.found_or_no_data(records)
            }
            Owner::Service => {
                let near = self.answers.nearest(&name, client);
                let records = address_records(query, self.ttl, &near);
                Reply {
                    tailored: true,
                    ..self.found_or_no_data(records)
                }
            }
        }
    }

    /// `name` without the origin, lower case: `web`, `web.shop`, empty for the origin itself.
    fn relative(&self, name: &Name) -> String {
        let depth = name
            .iter()
            .count()
            .saturating_sub(self.origin.iter().count());
        let labels = name.iter().take(depth);
        let text: Vec<String> = labels.map(|l| l.escape_ascii().to_string()).collect();
        text.join(".").to_ascii_lowercase()
    }

    fn owner(&self, name: &str) -> Owner {
        if name.is_empty() {
            return Owner::Apex;
        }
        let texts = self.answers.texts(name);
        if !texts.is_empty() {
            return Owner::Texts(texts);
        }
        let servers = self.answers.name_servers();
        let below = format!(".{name}");
        let encloses_server = servers.iter().any(|(server, _)| server.ends_with(&below));
        if let Some((_, addresses)) = servers.into_iter().find(|(server, _)| server == name) {
            Owner::NameServer(addresses)
        } else if self.answers.service_exists(name) {
            Owner::Service
        } else if encloses_server || self.answers.encloses(name) {
            Owner::Empty
        } else {
            Owner::Nothing
        }
    }

    fn apex(&self, query: &Query) -> Reply {
        match query.query_type() {
            RecordType::SOA => Reply::found(vec![self.soa(NAME_SERVER_TTL)]),
            RecordType::NS => {
                let (servers, glue) = self.name_servers();
                let reply = self.found_or_no_data(servers);
                Reply {
                    additionals: glue,
                    ..reply
                }
            }
            _ => self.negative(ResponseCode::NoError),
        }
    }

    fn name_servers(&self) -> (Vec<Record>, Vec<Record>) {
        let (mut servers, mut glue) = (Vec::new(), Vec::new());
        for (relative, addresses) in self.answers.name_servers() {
            let Some(name) = self.absolute(&relative) else {
                continue;
            };
            let rdata = RData::NS(NS(name.clone()));
            servers.push(Record::from_rdata(
                self.origin.clone(),
                NAME_SERVER_TTL,
                rdata,
            ));
            glue.extend(
                addresses
                    .iter()
                    .map(|ip| address(&name, NAME_SERVER_TTL, *ip)),
            );
        }
        (servers, glue)
    }

    fn absolute(&self, relative: &str) -> Option<Name> {
        Name::from_ascii(relative)
            .ok()?
            .append_domain(&self.origin)
            .ok()
    }

    fn found_or_no_data(&self, records: Vec<Record>) -> Reply {
        if records.is_empty() {
            self.negative(ResponseCode::NoError)
        } else {
            Reply::found(records)
        }
    }

    /// NXDOMAIN or NODATA: the SOA says how long that may be remembered (RFC 2308).
    fn negative(&self, code: ResponseCode) -> Reply {
        Reply {
            code,
            authorities: vec![self.soa(self.ttl)],
            ..Reply::found(Vec::new())
        }
    }

    fn soa(&self, ttl: u32) -> Record {
        let servers = self.answers.name_servers();
        let primary = servers.first().and_then(|(name, _)| self.absolute(name));
        let contact = self
            .absolute("hostmaster")
            .unwrap_or_else(|| self.origin.clone());
        let serial = u32::try_from(self.answers.serial() & u64::from(u32::MAX));
        let soa = SOA::new(
            primary.unwrap_or_else(|| self.origin.clone()),
            contact,
            serial.expect("masked to 32 bits"),
            REFRESH_SECONDS,
            RETRY_SECONDS,
            EXPIRE_SECONDS,
            self.ttl,
        );
        Record::from_rdata(self.origin.clone(), ttl, RData::SOA(soa))
    }
}

/// Address records of the asked family. The owner is spelled as asked: resolvers that randomise
/// case compare it.
fn address_records(query: &Query, ttl: u32, addresses: &[IpAddr]) -> Vec<Record> {
    let wanted = |ip: &&IpAddr| match query.query_type() {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        _ => false,
    };
    addresses
        .iter()
        .filter(wanted)
        .map(|ip| address(query.name(), ttl, *ip))
        .collect()
}

fn address(owner: &Name, ttl: u32, ip: IpAddr) -> Record {
    let rdata = match ip {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(owner.clone(), ttl, rdata)
}

fn text(owner: &Name, text: String) -> Record {
    let rdata = RData::TXT(TXT::new(vec![text]));
    Record::from_rdata(owner.clone(), TEXT_TTL, rdata)
}

/// RFC 8482's minimal answer, of no use to an amplifier.
fn any(owner: &Name) -> Record {
    let rdata = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    Record::from_rdata(owner.clone(), ANY_TTL, rdata)
}
