//! The words of the house: plain data every crate shares. Imports nothing but serde.
//!
//! All types serialize the same way in JSON (stored, shown) and in bincode (between nodes), so no
//! field is ever skipped or flattened; new fields carry `#[serde(default)]`.

mod certificate;
mod config;
mod coordinate;
mod domain;
mod door;
mod egress;
mod ids;
mod instance;
mod listen;
mod measured;
mod node;
mod rate;
mod revision;
mod sandbox;
mod service;
mod signal;
mod starts;
pub mod units;

pub use certificate::{
    AcmeAccount, Certificate, CertificateSource, Challenge, ChallengeKind, HOST_BYTES, Lease,
    Order, is_host, wildcard_over,
};
pub use config::{Blob, Config, LocalVolume, ObjectKey, Sealed, Secret};
pub use coordinate::{Coordinate, DIMENSIONS, Extent, LOST_PERMILLE, SPAN_MICROS};
pub use domain::{
    DOMAINS, Domain, DomainError, MOST_DOMAINS, domains_of, read_domains, set_domains,
    write_domains,
};
pub use door::{SLOW_START, STICKY, slow_start, sticky};
pub use egress::{Egress, EgressError};
pub use ids::{
    InstanceId, Name, NameError, NodeId, Now, RequestId, RevisionKey, ServiceKey, UnixMs,
};
pub use instance::{Activity, Exit, FailReason, InstanceReport, InstanceState, Used};
pub use listen::{Caller, CallerError, Listen, ListenProtocol, Socket};
pub use measured::{MOST_IMAGES, MOST_STARTS, Measured, Pressure, Pulls};
pub use node::{Demand, NodeIdentity, NodeRecord, Resources, Role, StartTime};
pub use rate::{Rate, RateError};
pub use revision::{ImagePin, Revision, RevisionState};
pub use sandbox::{Dns, HostAlias, IoLimits, Tmpfs, Ulimit};
pub use service::{
    CERTIFICATE, Container, ContainerPort, EnvVar, Fit, MOST_PRIORITY, Meta, Metric, PLAIN_HTTP,
    PROXY_PROTOCOL, PROXY_V2, PlacementRules, Preference, Probe, ProbeAction, Protocol, RATE,
    RevisionSpec, Scale, Schedule, SecurityContext, Service, ServiceStatus, Spread,
    TLS_ANNOTATIONS, TrafficTarget, Volume, VolumeMount, VolumeSource, is_of_the_door,
};
pub use signal::parse_signal;
pub use starts::StartHistogram;
