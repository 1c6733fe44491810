//! Asking a container once how it is. When it is asked, and what follows from the answer, is
//! decided elsewhere.

mod exec;
mod grpc;
mod http;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use netfabric::ingress::OWN_CONNECTION;
use scheduler::converge::Kind;
use scheduler::model::{InstanceId, Probe, ProbeAction, RevisionSpec};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::runtime::Runtime;

/// A probe that names no timeout gets Kubernetes' default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two commands in a container that is not ready yet. A connection can be tried every
/// millisecond; a process would be most of the load of the start it waits for.
const EXEC_PAUSE_MS: u64 = 50;

/// Whom to ask.
pub struct Asked {
    pub id: InstanceId,
    /// Its address, and the port requests come in on.
    pub service: SocketAddr,
    pub runtime: Arc<dyn Runtime>,
}

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    action: ProbeAction,
    timeout: Duration,
    /// The service's port wants the PROXY protocol first.
    introduced: bool,
}

impl Question {
    /// One of the service's probes; whether it is ready, where none says how to ask that, is a
    /// connect to its port.
    pub fn of(spec: &RevisionSpec, kind: Kind) -> Self {
        let probe = spec.main().and_then(|c| match kind {
            Kind::Startup => c.startup.as_ref(),
            Kind::Readiness => c.readiness.as_ref(),
            Kind::Liveness => c.liveness.as_ref(),
        });
        let (action, timeout) = match probe {
            Some(probe) => (probe.action.clone(), timeout(probe)),
            None => (ProbeAction::Tcp { port: 0 }, DEFAULT_TIMEOUT),
        };
        Self {
            action,
            timeout,
            introduced: spec.proxy_protocol(),
        }
    }

    /// The least pause before the question is put again.
    pub fn pause_ms(&self) -> u64 {
        match self.action {
            ProbeAction::Exec { .. } => EXEC_PAUSE_MS,
            _ => 0,
        }
    }

    /// Asks once. An error says what was asked and what came back, for people.
    pub async fn ask(&self, whom: &Asked) -> Result<(), String> {
        let at = |port: &u16| {
            let port = if *port == 0 {
                whom.service.port()
            } else {
                *port
            };
            Patient {
                address: SocketAddr::new(whom.service.ip(), port),
                timeout: self.timeout,
                deadline: Instant::now() + self.timeout,
                introduced: self.introduced && port == whom.service.port(),
            }
        };
        match &self.action {
            ProbeAction::Http {
                path,
                port,
                headers,
            } => {
                let at = at(port);
                let asked = http::ask(&at, path, headers).await;
                asked.map_err(|why| format!("http GET {}{path}: {why}", at.address))
            }
            ProbeAction::Tcp { port } => {
                let at = at(port);
                let asked = at.connect().await.map(drop);
                asked.map_err(|why| format!("tcp {}: {why}", at.address))
            }
            ProbeAction::Grpc { port, service } => {
                let at = at(port);
                let asked = grpc::ask(&at, service).await;
                asked.map_err(|why| format!("grpc {} `{service}`: {why}", at.address))
            }
            ProbeAction::Exec { command } => {
                let asked = exec::ask(&*whom.runtime, &whom.id, command, self.timeout).await;
                asked.map_err(|why| format!("exec `{}`: {why}", command.join(" ")))
            }
        }
    }
}

fn timeout(probe: &Probe) -> Duration {
    match probe.timeout_seconds {
        0 => DEFAULT_TIMEOUT,
        seconds => Duration::from_secs(u64::from(seconds)),
    }
}

/// Where to ask, and until when.
struct Patient {
    address: SocketAddr,
    timeout: Duration,
    deadline: Instant,
    introduced: bool,
}

impl Patient {
    async fn connect(&self) -> Result<TcpStream, String> {
        let connecting = async {
            let mut stream = TcpStream::connect(self.address).await?;
            if self.introduced {
                stream.write_all(&OWN_CONNECTION).await?;
            }
            Ok::<_, io::Error>(stream)
        };
        let connected = self.within("connection", connecting);
        connected.await?.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            _ => error.to_string(),
        })
    }

    /// What `step` gives, unless it takes too long; `what` is what it was to bring.
    async fn within<T>(&self, what: &str, step: impl Future<Output = T>) -> Result<T, String> {
        let in_time = timeout_at(self.deadline, step).await;
        in_time.map_err(|_| format!("no {what} within {:?}", self.timeout))
    }
}

#[cfg(test)]
mod tests;
