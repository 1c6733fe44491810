//! Asking a container once how it is.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use scheduler::converge::Kind;
use scheduler::model::{Probe, ProbeAction, RevisionSpec};
use tokio::net::TcpStream;

/// A probe that names no timeout gets Kubernetes' default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// What to ask: one of the service's probes; whether it is ready, where none says how to ask that,
/// is a connect to its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    action: ProbeAction,
    timeout: Duration,
}

impl Question {
    pub fn of(spec: &RevisionSpec, kind: Kind) -> Self {
        let fallback = Self {
            action: ProbeAction::Tcp { port: 0 },
            timeout: DEFAULT_TIMEOUT,
        };
        let probe = spec.main().and_then(|c| match kind {
            Kind::Startup => c.startup.as_ref(),
            Kind::Readiness => c.readiness.as_ref(),
            Kind::Liveness => c.liveness.as_ref(),
        });
        match probe {
            Some(Probe {
                action,
                timeout_seconds,
                ..
            }) => Self {
                action: action.clone(),
                timeout: match timeout_seconds {
                    0 => DEFAULT_TIMEOUT,
                    seconds => Duration::from_secs(u64::from(*seconds)),
                },
            },
            None => fallback,
        }
    }

    /// Asks `service`, the instance's address and port. A late answer is a no.
    ///
    /// # Errors
    /// What was answered instead of a yes.
    pub async fn ask(&self, service: SocketAddr) -> Result<(), String> {
        let asked = async {
            match &self.action {
                ProbeAction::Http { path, port } => http(at(service, *port), path).await,
                ProbeAction::Tcp { port } => tcp(at(service, *port)).await.map(drop),
                // Refused at deploy until they are built; a stored one counts as not ready.
                ProbeAction::Grpc { .. } | ProbeAction::Exec { .. } => {
                    Err("this node cannot ask this".to_owned())
                }
            }
        };
        let late = |_| Err(format!("no answer within {} s", self.timeout.as_secs()));
        let answer = tokio::time::timeout(self.timeout, asked).await;
        answer.unwrap_or_else(late)
    }
}

fn at(service: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(service.ip(), if port == 0 { service.port() } else { port })
}

async fn tcp(address: SocketAddr) -> Result<TcpStream, String> {
    let connected = TcpStream::connect(address).await;
    connected.map_err(|error| format!("{address}: {error}"))
}

async fn http(address: SocketAddr, path: &str) -> Result<(), String> {
    let stream = tcp(address).await?;
    let broke = |error: hyper::Error| format!("GET {path}: {error}");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(broke)?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, address.to_string())
        .header(http::header::USER_AGENT, "selvedge-probe/1")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| format!("GET {path}: {error}"))?;
    let answer = sender.send_request(request).await.map_err(broke);
    driver.abort();
    let status = answer?.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("GET {path}: {status}"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    fn question(action: ProbeAction) -> Question {
        Question {
            action,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    #[tokio::test]
    async fn http_takes_200_to_399_and_tcp_a_connect() {
        let get = question(ProbeAction::Http {
            path: "/healthz".into(),
            port: 0,
        });
        for (status, ready) in [("200 OK", true), ("302 Found", true), ("503 Busy", false)] {
            let answer = get.ask(answering(status).await).await;
            assert_eq!(answer.is_ok(), ready, "{status}: {answer:?}");
        }
        let tcp = question(ProbeAction::Tcp { port: 0 });
        assert!(tcp.ask(answering("200 OK").await).await.is_ok());
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(tcp.ask(closed).await.is_err());
    }
}
