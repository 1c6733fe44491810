//! The rows of `get`: which columns a kind has and what stands in them.

use netfabric::wire::api::{
    CertificateState, CertificateView, DomainView, ImageShare, ImageView, InstanceView, NodeStatus,
    ObjectView, ServiceView, VolumeView,
};
use scheduler::model::{CertificateSource, Name, Revision, RevisionState, Role, Scale, UnixMs};

use super::words::{age, bytes, cores, first_line, micros, or_dash, short_digest, time};
use super::{Row, View};

/// Reasons are cut at this many characters in tables; `describe` has them whole.
const REASON_CHARS: usize = 60;

fn qualified(namespace: &Name, name: &Name, view: &View) -> String {
    if view.namespaced {
        format!("{namespace}/{name}")
    } else {
        name.to_string()
    }
}

/// `0..10`, `2..` or `3`.
pub fn scale_bounds(scale: &Scale) -> String {
    match (scale.min, scale.max) {
        (min, 0) => format!("{min}.."),
        (min, max) if min == max => min.to_string(),
        (min, max) => format!("{min}..{max}"),
    }
}

impl Row for ServiceView {
    const KIND: &'static str = "service";
    const PLURAL: &'static str = "services";
    const COLUMNS: &'static [&'static str] =
        &["NAME", "READY", "INSTANCES", "SCALE", "LATEST", "URL"];
    const WIDE: &'static [&'static str] = &["IMAGE", "AGE", "REASON"];

    fn name(&self) -> String {
        self.service.key.name.to_string()
    }

    fn cells(&self, view: &View) -> Vec<String> {
        let service = &self.service;
        let counts = &self.instances;
        let mut instances = vec![format!("{} ready", counts.ready)];
        for (count, word) in [
            (counts.frozen, "frozen"),
            (counts.starting, "starting"),
            (counts.failed, "failed"),
        ] {
            if count > 0 {
                instances.push(format!("{count} {word}"));
            }
        }
        let ready = match self.condition.reason.as_str() {
            "" => self.condition.ready.clone(),
            reason => format!("{} ({reason})", self.condition.ready),
        };
        let latest = service.status.latest_created.as_ref();
        vec![
            qualified(&service.key.namespace, &service.key.name, view),
            ready,
            instances.join(", "),
            scale_bounds(&service.scale),
            latest.map_or_else(|| "-".to_owned(), |r| r.name.to_string()),
            self.url.clone(),
        ]
    }

    fn wide_cells(&self, view: &View) -> Vec<String> {
        let image = self
            .service
            .spec
            .main()
            .map(|c| c.image.clone())
            .unwrap_or_default();
        vec![
            or_dash(image),
            age(self.service.meta.created, view.now),
            or_dash(first_line(&self.condition.message, REASON_CHARS)),
        ]
    }
}

impl Row for Revision {
    const KIND: &'static str = "revision";
    const PLURAL: &'static str = "revisions";
    const COLUMNS: &'static [&'static str] = &["NAME", "SERVICE", "STATE", "IMAGE", "AGE"];
    const WIDE: &'static [&'static str] = &["DIGEST", "CPU", "MEMORY", "REASON"];

    fn name(&self) -> String {
        self.key.name.to_string()
    }

    fn cells(&self, view: &View) -> Vec<String> {
        vec![
            qualified(&self.key.namespace, &self.key.name, view),
            self.service.name.to_string(),
            revision_state(&self.state),
            self.image.reference.clone(),
            age(self.created, view.now),
        ]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        let main = self.spec.main();
        let reason = match &self.state {
            RevisionState::Failed { message, .. } => first_line(message, REASON_CHARS),
            _ => String::new(),
        };
        vec![
            short_digest(&self.image.digest),
            limit(main.map_or(0, |c| c.cpu_millis), cores),
            limit(main.map_or(0, |c| c.memory_bytes), bytes),
            or_dash(reason),
        ]
    }
}

/// A limit, where zero is none.
pub(super) fn limit<T: PartialEq + Default>(amount: T, show: impl Fn(T) -> String) -> String {
    if amount == T::default() {
        "-".to_owned()
    } else {
        show(amount)
    }
}

pub(super) fn revision_state(state: &RevisionState) -> String {
    match state {
        RevisionState::Pending => "Pending".to_owned(),
        RevisionState::Ready => "Ready".to_owned(),
        RevisionState::Failed { reason, .. } => format!("Failed ({reason})"),
    }
}

impl Row for InstanceView {
    const KIND: &'static str = "instance";
    const PLURAL: &'static str = "instances";
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "STATE",
        "NODE",
        "REGION",
        "IN-FLIGHT",
        "AGE",
        "REASON",
    ];
    const WIDE: &'static [&'static str] = &["SERVICE", "REVISION", "MESSAGE"];

    fn name(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self, view: &View) -> Vec<String> {
        let id = if view.namespaced {
            format!("{}/{}", self.namespace, self.id)
        } else {
            self.id.to_string()
        };
        // A node that is gone reports nothing any more: its last word is not the truth now.
        let state = if self.alive {
            self.state.to_string()
        } else {
            format!("{} (lost)", self.state)
        };
        let reason = self
            .failure
            .as_ref()
            .map(|f| f.code.clone())
            .or_else(|| (self.leases > 0).then(|| "Leased".to_owned()))
            .unwrap_or_default();
        vec![
            id,
            state,
            self.node_name.to_string(),
            self.region.to_string(),
            self.in_flight.to_string(),
            age(self.since, view.now),
            or_dash(reason),
        ]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        let message = self
            .failure
            .as_ref()
            .map(|f| first_line(&f.message, REASON_CHARS));
        vec![
            self.service.to_string(),
            self.revision.to_string(),
            or_dash(message.unwrap_or_default()),
        ]
    }
}

impl Row for NodeStatus {
    const KIND: &'static str = "node";
    const PLURAL: &'static str = "nodes";
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "STATUS",
        "ROLE",
        "REGION",
        "ZONE",
        "RTT",
        "INSTANCES",
        "CPU-FREE",
        "MEMORY-FREE",
    ];
    const WIDE: &'static [&'static str] = &["ID", "MESH", "INGRESS", "INDEX", "VERSION", "LABELS"];

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn cells(&self, _: &View) -> Vec<String> {
        let rtt = self.rtt_micros.filter(|_| self.alive);
        let free = |free: String, all: String| format!("{free}/{all}");
        vec![
            self.name.to_string(),
            node_condition(self).to_owned(),
            role(self.role).to_owned(),
            self.region.to_string(),
            self.zone.to_string(),
            rtt.map_or_else(|| "-".to_owned(), distance),
            self.instances.to_string(),
            free(cores(self.free.cpu_millis), cores(self.capacity.cpu_millis)),
            free(
                bytes(self.free.memory_bytes),
                bytes(self.capacity.memory_bytes),
            ),
        ]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        let ingress: Vec<String> = self.ingress.iter().map(ToString::to_string).collect();
        let labels: Vec<String> = self
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        vec![
            self.id.to_string(),
            self.mesh.to_string(),
            or_dash(ingress.join(",")),
            self.registry_index.to_string(),
            or_dash(self.version.clone()),
            or_dash(labels.join(",")),
        ]
    }
}

/// A round trip; zero is the one who measures.
pub(super) fn distance(rtt: u32) -> String {
    if rtt == 0 {
        "self".to_owned()
    } else {
        micros(rtt.into())
    }
}

pub(super) fn node_condition(node: &NodeStatus) -> &'static str {
    match (node.alive, node.serving, node.cordoned) {
        (false, _, _) => "Lost",
        (true, false, _) => "Leaving",
        (true, true, true) if node.draining => "Draining",
        (true, true, true) => "Cordoned",
        (true, true, false) => "Ready",
    }
}

pub(super) const fn role(role: Role) -> &'static str {
    match role {
        Role::Voter => "voter",
        Role::Follower => "follower",
    }
}

impl Row for ImageView {
    const KIND: &'static str = "image";
    const PLURAL: &'static str = "images";
    const COLUMNS: &'static [&'static str] = &["REFERENCE", "DIGEST", "SIZE", "NODES"];
    const WIDE: &'static [&'static str] = &["OWN", "USED", "SERVICES", "FULL-DIGEST"];

    fn name(&self) -> String {
        self.reference.clone()
    }

    fn cells(&self, _: &View) -> Vec<String> {
        vec![
            self.reference.clone(),
            short_digest(&self.digest),
            bytes(self.bytes),
            or_dash(self.nodes.join(",")),
        ]
    }

    fn wide_cells(&self, view: &View) -> Vec<String> {
        vec![
            bytes(self.own_bytes),
            or_dash(
                self.last_used
                    .map(|at| age(at, view.now))
                    .unwrap_or_default(),
            ),
            or_dash(self.services.join(",")),
            self.digest.clone(),
        ]
    }
}

impl Row for ImageShare {
    const KIND: &'static str = "service";
    const PLURAL: &'static str = "images";
    const COLUMNS: &'static [&'static str] = &["SERVICE", "NODE", "IMAGES", "SIZE", "OWN"];
    const WIDE: &'static [&'static str] = &[];

    fn name(&self) -> String {
        self.service.clone()
    }

    fn cells(&self, _: &View) -> Vec<String> {
        vec![
            or_dash(self.service.clone()),
            self.node.to_string(),
            self.images.to_string(),
            bytes(self.bytes),
            bytes(self.own_bytes),
        ]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        Vec::new()
    }
}

/// A config or a secret: what keys it has, never their values.
impl Row for ObjectView {
    const KIND: &'static str = "object";
    const PLURAL: &'static str = "objects";
    const COLUMNS: &'static [&'static str] = &["NAME", "KEYS", "SIZE"];
    const WIDE: &'static [&'static str] = &["VERSION"];

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn cells(&self, view: &View) -> Vec<String> {
        let keys: Vec<&str> = self.keys.keys().map(String::as_str).collect();
        let size: usize = self.keys.values().sum();
        vec![
            qualified(&self.namespace, &self.name, view),
            or_dash(keys.join(",")),
            bytes(size as u64),
        ]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        vec![self.version.to_string()]
    }
}

/// A certificate's state, in a word or two.
pub(super) fn held(state: CertificateState, failed: bool) -> &'static str {
    match (state, failed) {
        (CertificateState::Valid, _) => "valid",
        (CertificateState::Expiring, _) => "expiring",
        (CertificateState::Expired, _) => "expired",
        (CertificateState::OnOrder, false) => "on order",
        (CertificateState::OnOrder, true) => "order failed",
    }
}

impl Row for CertificateView {
    const KIND: &'static str = "certificate";
    const PLURAL: &'static str = "certificates";
    const COLUMNS: &'static [&'static str] = &["NAME", "SOURCE", "STATE", "LEFT", "HOSTS"];
    const WIDE: &'static [&'static str] = &["EXPIRES", "ERROR"];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, _: &View) -> Vec<String> {
        let source = match self.source {
            CertificateSource::Own => "own",
            CertificateSource::Acme => "acme",
        };
        let left = u64::try_from(self.seconds_left)
            .unwrap_or(0)
            .saturating_mul(1000);
        let left = (left > 0).then(|| age(UnixMs(0), UnixMs(left)));
        vec![
            self.name.clone(),
            source.to_owned(),
            held(self.state, self.error.is_some()).to_owned(),
            or_dash(left.unwrap_or_default()),
            self.hosts.join(","),
        ]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        let expires = (self.not_after.0 > 0).then(|| time(self.not_after));
        let error = self.error.as_deref().unwrap_or_default();
        vec![
            or_dash(expires.unwrap_or_default()),
            or_dash(first_line(error, REASON_CHARS)),
        ]
    }
}

impl Row for DomainView {
    const KIND: &'static str = "domain";
    const PLURAL: &'static str = "domains";
    const COLUMNS: &'static [&'static str] = &["DOMAIN", "SERVICE", "CERTIFICATE"];
    const WIDE: &'static [&'static str] = &["ERROR"];

    fn name(&self) -> String {
        self.domain.to_string()
    }

    fn cells(&self, view: &View) -> Vec<String> {
        let state = self.certificate.map(|s| held(s, self.error.is_some()));
        vec![
            self.domain.to_string(),
            qualified(&self.namespace, &self.service, view),
            or_dash(state.unwrap_or_default().to_owned()),
        ]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        let error = self.error.as_deref().unwrap_or_default();
        vec![or_dash(first_line(error, REASON_CHARS))]
    }
}

impl Row for VolumeView {
    const KIND: &'static str = "volume";
    const PLURAL: &'static str = "volumes";
    const COLUMNS: &'static [&'static str] = &["NAME", "NODE"];
    const WIDE: &'static [&'static str] = &[];

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn cells(&self, view: &View) -> Vec<String> {
        let name = qualified(&self.namespace, &self.name, view);
        vec![name, or_dash(self.node_name.clone())]
    }

    fn wide_cells(&self, _: &View) -> Vec<String> {
        Vec::new()
    }
}
