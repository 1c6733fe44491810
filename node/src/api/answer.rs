//! How a failure becomes an answer: one place that maps the rooms' errors to API codes.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use netfabric::wire::api::{ApiError, ErrorCode};
use scheduler::model::NameError;
use scheduler::registry::Refusal;

use crate::consensus::{Outage, ProposeError, ReadError, Registry};
use crate::image::ImageError;

/// An API error as a response.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ApiError);

impl Failure {
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::NotFound, message))
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::Invalid, message))
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::Internal, message))
    }

    /// Nothing can be changed from here: why, as far as this node knows.
    pub(super) fn no_quorum(registry: &Registry) -> Self {
        match registry.status().failed {
            Some(outage) => Self::store_failed(&outage),
            None => Self::out_of_reach(),
        }
    }

    fn out_of_reach() -> Self {
        let message = "quorum is lost: most voters of the registry are out of reach, so nothing can be changed";
        Self(
            ApiError::new(ErrorCode::NoQuorum, message)
                .hint("services go on serving; `selvedge node ls` shows which voters are missing"),
        )
    }

    fn store_failed(outage: &Outage) -> Self {
        let dir = outage.dir.display();
        let message = format!("{outage}; no other voter leads, so nothing can be changed");
        let hint = if outage.for_good {
            format!(
                "services go on serving; the store in {dir} is not tried again: replace this node, \
                 or restore the disk and restart the daemon"
            )
        } else {
            format!(
                "services go on serving; make room on the disk of {dir}, or mend it: the node tries \
                 again by itself every few seconds"
            )
        };
        Self(ApiError::new(ErrorCode::NoQuorum, message).hint(hint))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::NotFound(_) => ErrorCode::NotFound,
            Refusal::Conflict { .. }
            | Refusal::NameTaken(_)
            | Refusal::AlreadyFounded
            | Refusal::Fenced(_)
            | Refusal::InUse { .. } => ErrorCode::Conflict,
            Refusal::Invalid { .. } => ErrorCode::Invalid,
            Refusal::TokenUnknown | Refusal::TokenUsed | Refusal::TokenExpired => {
                ErrorCode::Unauthorized
            }
        };
        Self(ApiError::new(code, refusal.to_string()))
    }
}

impl From<axum::extract::rejection::JsonRejection> for Failure {
    fn from(rejection: axum::extract::rejection::JsonRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self(ApiError::new(
                ErrorCode::TooLarge,
                "the body is larger than this call takes",
            ));
        }
        Self::invalid(rejection.body_text())
    }
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NoQuorum => Self::out_of_reach(),
            ProposeError::StoreFailed(outage) => Self::store_failed(&outage),
            ProposeError::Unknown => Self(
                ApiError::new(ErrorCode::Timeout, error.to_string())
                    .hint("read it back with `selvedge get` before trying again"),
            ),
            ProposeError::Busy => Self(ApiError::new(ErrorCode::Unreachable, error.to_string())),
            ProposeError::TooLarge => Self(ApiError::new(ErrorCode::TooLarge, error.to_string())),
            ProposeError::Refused(_) => Self(ApiError::new(ErrorCode::Internal, error.to_string())),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NoQuorum => Self(
                ApiError::new(
                    ErrorCode::NoQuorum,
                    "quorum is lost: nobody can say what the newest state is",
                )
                .hint("without `consistent` this node answers from its own copy"),
            ),
            ReadError::Behind { .. } => Self(ApiError::new(ErrorCode::Timeout, error.to_string())),
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let hint = match &error {
            ImageError::Unreachable { .. } => {
                "is the registry's name right, and does it run? One without TLS needs `[runtime] registries.\"HOST\".insecure = true`"
            }
            ImageError::AuthRefused { .. } => {
                "put credentials into ~/.docker/config.json of the node"
            }
            ImageError::Unsigned { .. } => {
                "sign it with `cosign sign --key`; the rules stand in `[[images.signatures]]` of the node's configuration"
            }
            ImageError::BadReference { .. } => {
                "write an image like registry.example.com/team/app:1.4"
            }
            ImageError::NotHeld { .. } => {
                "give it to this node: selvedge image push, selvedge image import or selvedge image pull"
            }
            _ => "",
        };
        let code = match &error {
            // What was asked for may not be: as a wrong manifest.
            ImageError::Unsigned { passing: false, .. } => ErrorCode::Invalid,
            _ => ErrorCode::Image,
        };
        Self(ApiError::new(code, format!("{}: {error}", error.code())).hint(hint))
    }
}
