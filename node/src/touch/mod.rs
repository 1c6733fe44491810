//! An operator's hand on an instance: programs in it, files out of it and into it, connections to its
//! ports. Here when it is this node's, through the node that has it otherwise.
//!
//! Owns the sessions: how many there are, their frames, the way to a peer. Containers are the
//! runtime's, HTTP the API's.

mod forward;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use netfabric::ingress::{Awake, Local};
use netfabric::transport::{Handler, Kind, Mesh, MeshStream, TransportError};
use netfabric::wire::api::{ApiError, ErrorCode};
use netfabric::wire::touch::{CopyRequest, ExecRequest, Touch, Touched, Way, Wish};
use scheduler::model::{InstanceId, NodeId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::runtime::{CopyJob, Exec, ExecSpec, FailCode, Failure, Runtime, RuntimeError};

/// Programs and copies of operators on this node at once, each with a process of its own.
const MAX_PROGRAMS: usize = 64;
/// Forwarded connections on this node at once.
const MAX_FORWARDS: usize = 256;
/// Sessions this node passes on to others at once.
const MAX_RELAYS: usize = 512;
/// To reach the node that has the instance, and for its answer: starting a program there may take
/// as long as the runtime allows.
const PEER_DEADLINE: Duration = Duration::from_secs(20);
/// For the request of a peer that opened a stream.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes both ways.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Reaches the instances of this node, and those of others through them. Cheap to clone.
#[derive(Clone)]
pub struct Toucher {
    me: NodeId,
    mesh: Mesh,
    runtime: Arc<dyn Runtime>,
    local: Arc<Local>,
    programs: Arc<Semaphore>,
    forwards: Arc<Semaphore>,
    relays: Arc<Semaphore>,
}

/// What was asked has begun; the connection of the one who asked is still to be joined to it.
pub struct Session {
    far: Far,
    _permit: OwnedSemaphorePermit,
    /// An instance that somebody works in is not held still.
    _awake: Option<Awake>,
}

enum Far {
    Program(Exec),
    /// A program that could not be run, told as a shell would.
    NoProgram(Failure),
    Port(TcpStream),
    Peer(MeshStream),
}

impl Toucher {
    pub fn new(me: NodeId, mesh: Mesh, runtime: Arc<dyn Runtime>, local: Arc<Local>) -> Self {
        let of = |count| Arc::new(Semaphore::new(count));
        Self {
            me,
            mesh,
            runtime,
            local,
            programs: of(MAX_PROGRAMS),
            forwards: of(MAX_FORWARDS),
            relays: of(MAX_RELAYS),
        }
    }

    /// Begins what is wanted, on the node that has the instance.
    pub async fn begin(&self, node: NodeId, touch: Touch) -> Result<Session, ApiError> {
        if node == self.me {
            return self.begin_here(touch).await;
        }
        let permit = permit(&self.relays)?;
        let asked = tokio::time::timeout(PEER_DEADLINE, self.ask(node, &touch)).await;
        let stream = asked.unwrap_or_else(|_| {
            Err(unreachable(format!(
                "the node of instance {} did not answer in time",
                touch.instance
            )))
        })?;
        Ok(Session {
            far: Far::Peer(stream),
            _permit: permit,
            _awake: None,
        })
    }

    async fn ask(&self, node: NodeId, touch: &Touch) -> Result<MeshStream, ApiError> {
        let lost = |error: &dyn std::fmt::Display| {
            unreachable(format!(
                "the node of instance {} cannot be reached: {error}",
                touch.instance
            ))
        };
        let opened = self.mesh.open(node, Kind::Touch, PEER_DEADLINE).await;
        let mut stream = opened.map_err(|e: TransportError| lost(&e))?;
        let line = serde_json::to_vec(touch).map_err(|e| lost(&e))?;
        stream.write_frame(&line).await.map_err(|e| lost(&e))?;
        let answer = stream.read_frame().await.map_err(|e| lost(&e))?;
        let answer: Touched =
            serde_json::from_slice(&answer.unwrap_or_default()).map_err(|e| lost(&e))?;
        match answer.refused {
            None => Ok(stream),
            Some(error) => Err(error),
        }
    }

    async fn begin_here(&self, touch: Touch) -> Result<Session, ApiError> {
        let Touch { instance, wish } = touch;
        let awake = self.local.keep_awake(&instance).await.map_err(|error| {
            let message = format!("instance {instance} stays frozen: {error}");
            ApiError::new(ErrorCode::Internal, message)
        })?;
        let (far, permit) = match wish {
            Wish::Exec(request) => {
                let permit = permit(&self.programs)?;
                (self.exec(&instance, request).await?, permit)
            }
            Wish::Copy(request) => {
                let permit = permit(&self.programs)?;
                (self.copy(&instance, request).await?, permit)
            }
            Wish::Forward(port) => {
                let permit = permit(&self.forwards)?;
                let stream = forward::connect(&*self.runtime, &instance, port).await?;
                (Far::Port(stream), permit)
            }
        };
        Ok(Session {
            far,
            _permit: permit,
            _awake: awake,
        })
    }

    async fn exec(&self, id: &InstanceId, request: ExecRequest) -> Result<Far, ApiError> {
        // Who did what in whose container is worth a line; its arguments may hold secrets.
        let program = request.args.first().map_or("", String::as_str);
        tracing::info!(instance = %id, program, "an operator runs a program");
        let spec = ExecSpec {
            args: request.args,
            env: request.env,
            cwd: request.cwd,
            user: request.user,
            tty: request.tty,
            stdin: request.stdin,
        };
        match self.runtime.exec(id, &spec).await {
            Ok(exec) => Ok(Far::Program(exec)),
            Err(RuntimeError::Failed(failure)) if is_missing(&failure) => {
                Ok(Far::NoProgram(failure))
            }
            Err(error) => Err(refused(id, error)),
        }
    }

    async fn copy(&self, id: &InstanceId, request: CopyRequest) -> Result<Far, ApiError> {
        if !request.path.starts_with('/') || request.path.contains('\0') {
            let message = format!("`{}` is no absolute path in the container", request.path);
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        let path = request.path.into();
        let job = match request.way {
            Way::Out => CopyJob::Pack { path },
            Way::In => CopyJob::Unpack {
                path,
                renames: true,
            },
            Way::InAsIs => CopyJob::Unpack {
                path,
                renames: false,
            },
        };
        tracing::info!(instance = %id, ?job, "an operator copies files");
        let begun = self.runtime.copy(id, job, request.user).await;
        begun.map(Far::Program).map_err(|error| refused(id, error))
    }
}

impl Session {
    /// Serves the connection to its end. When it breaks, so does what it was joined to.
    pub async fn serve(self, mut connection: impl Connection) {
        let ended = match self.far {
            Far::Program(exec) => session::serve(connection, exec).await,
            Far::NoProgram(failure) => session::missing(connection, &failure).await,
            Far::Port(stream) => forward::join(connection, stream).await,
            Far::Peer(mut stream) => {
                let joined = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
                if joined.is_err() {
                    stream.abort();
                }
                joined.map(drop)
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an operator's session broke off");
        }
    }
}

/// Serves the wishes that peers pass on.
pub fn serve(mesh: &Mesh, toucher: Toucher) {
    mesh.serve(Kind::Touch, Arc::new(toucher));
}

#[async_trait]
impl Handler for Toucher {
    async fn handle(&self, from: NodeId, mut stream: MeshStream) {
        let read = tokio::time::timeout(REQUEST_DEADLINE, stream.read_frame()).await;
        let Ok(Ok(Some(frame))) = read else { return };
        let begun = match serde_json::from_slice::<Touch>(&frame) {
            Ok(touch) => {
                tracing::debug!(%from, instance = %touch.instance, "a peer passes on a wish");
                self.begin_here(touch).await
            }
            Err(error) => Err(ApiError::new(ErrorCode::Invalid, error.to_string())),
        };
        let (refused, session) = match begun {
            Ok(session) => (None, Some(session)),
            Err(error) => (Some(error), None),
        };
        let answer = serde_json::to_vec(&Touched { refused }).unwrap_or_default();
        if let (Ok(()), Some(session)) = (stream.write_frame(&answer).await, session) {
            session.serve(stream).await;
        }
    }
}

fn permit(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    of.clone().try_acquire_owned().map_err(|_| {
        let message = "too many sessions of operators on this node at once";
        ApiError::new(ErrorCode::Conflict, message).hint("end one of them first")
    })
}

fn unreachable(message: String) -> ApiError {
    ApiError::new(ErrorCode::Unreachable, message)
}

/// What a shell would answer with 127 or 126: the program's own affair, not a refusal.
fn is_missing(failure: &Failure) -> bool {
    matches!(
        failure.code,
        FailCode::CommandNotFound | FailCode::CommandNotExecutable
    )
}

fn refused(id: &InstanceId, error: RuntimeError) -> ApiError {
    match error {
        RuntimeError::Failed(failure) => {
            let code = match failure.code {
                FailCode::BadSpec | FailCode::BadUser | FailCode::BadWorkingDir => {
                    ErrorCode::Invalid
                }
                FailCode::WrongState => ErrorCode::Conflict,
                _ => ErrorCode::Internal,
            };
            ApiError::new(code, format!("instance {id}: {}", failure.message))
        }
        RuntimeError::Unknown(_) => {
            let message = format!("instance {id} does not run any more");
            ApiError::new(ErrorCode::Conflict, message).hint("selvedge get instances")
        }
        other => ApiError::new(ErrorCode::Internal, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_whose_fault_it_is() {
        let id = InstanceId("web-1".into());
        let failed = |code| RuntimeError::Failed(Failure::new(code, "why"));
        for (error, want) in [
            (failed(FailCode::BadUser), ErrorCode::Invalid),
            (failed(FailCode::WrongState), ErrorCode::Conflict),
            (failed(FailCode::Namespace), ErrorCode::Internal),
            (RuntimeError::Unknown(id.clone()), ErrorCode::Conflict),
            (RuntimeError::Unreadable(id.clone()), ErrorCode::Internal),
        ] {
            let refusal = refused(&id, error);
            assert_eq!(refusal.code, want, "{refusal}");
            assert!(refusal.message.contains("web-1"), "{refusal}");
        }
    }
}
