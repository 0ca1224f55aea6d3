//! THE table, row by row, and which causes lead to which row.

use super::*;
use crate::engine::EngineError;

const CLIENT: &str = "invalid_request_error";

#[test]
fn the_list_of_codes_has_each_once() {
    for (place, code) in ErrorCode::ALL.into_iter().enumerate() {
        assert_eq!(code as usize, place, "{code:?}");
    }
    // The last one declared.
    assert_eq!(ErrorCode::InternalError as usize + 1, ErrorCode::ALL.len());
}

#[test]
fn every_row_has_its_status_type_code_and_headers() {
    use ErrorCode::*;
    for (code, status, kind, name) in [
        (InvalidJson, 400, CLIENT, "invalid_json"),
        (InvalidValue, 400, CLIENT, "invalid_value"),
        (UnknownField, 400, CLIENT, "unknown_field"),
        (TooManyInputs, 400, CLIENT, "too_many_inputs"),
        (
            ContextLengthExceeded,
            400,
            CLIENT,
            "context_length_exceeded",
        ),
        (InvalidDimensions, 400, CLIENT, "invalid_dimensions"),
        (InvalidImage, 400, CLIENT, "invalid_image"),
        (InvalidVideo, 400, CLIENT, "invalid_video"),
        (UnsupportedMedia, 400, CLIENT, "unsupported_media"),
        (MediaFetchFailed, 400, CLIENT, "media_fetch_failed"),
        (MediaUrlBlocked, 400, CLIENT, "media_url_blocked"),
        (InvalidApiKey, 401, CLIENT, "invalid_api_key"),
        (ModelNotFound, 404, CLIENT, "model_not_found"),
        (NotFound, 404, CLIENT, "not_found"),
        (MethodNotAllowed, 405, CLIENT, "method_not_allowed"),
        (RequestTimeout, 408, CLIENT, "request_timeout"),
        (RequestTooLarge, 413, CLIENT, "request_too_large"),
        (MediaTooLarge, 413, CLIENT, "media_too_large"),
        (UnsupportedMediaType, 415, CLIENT, "unsupported_media_type"),
        (QueueFull, 429, "rate_limit_error", "queue_full"),
        (
            RateLimitExceeded,
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
        ),
        (InternalError, 500, "server_error", "internal_error"),
        (ModelLoading, 503, "server_error", "model_loading"),
        (Draining, 503, "server_error", "draining"),
        (DeviceUnavailable, 503, "server_error", "device_unavailable"),
        (DeadlineExceeded, 504, "server_error", "deadline_exceeded"),
    ] {
        let error = ApiError::at(code, "input[1]", "words");
        let expected = json!({"message": "words", "type": kind, "param": "input[1]", "code": name});
        assert_eq!(error.body(), expected);
        let response = error.into_response();
        assert_eq!(response.status().as_u16(), status, "{name}");
        let header = |name: &str| response.headers().get(name).map(HeaderValue::as_bytes);
        let final_word = matches!(status, 400 | 413 | 415).then_some(&b"false"[..]);
        assert_eq!(header("x-should-retry"), final_word, "{name}");
        let come_again = matches!(status, 429 | 503).then_some(&b"1"[..]);
        assert_eq!(header("retry-after"), come_again, "{name}");
        let come_again = come_again.map(|_| &b"1000"[..]);
        assert_eq!(header("retry-after-ms"), come_again, "{name}");
        let scheme = (status == 401).then_some(&b"Bearer"[..]);
        assert_eq!(header("www-authenticate"), scheme, "{name}");
        assert_eq!(header("content-type"), Some(&b"application/json"[..]));
    }
}

fn answered(at: &str, cause: impl Into<Cause>) -> ApiError {
    ApiError::from(ServiceError {
        at: Some(at.to_owned()),
        cause: cause.into(),
    })
}

#[test]
fn a_limit_of_the_decoder_is_named_with_its_value_and_its_setting() {
    let stopped = MediaError::TooCostly {
        limit: 60,
        unit: "seconds of CPU time",
        setting: "media.max_decoder_seconds",
    };
    let answer = answered("input.video", stopped);
    assert_eq!(answer.code, ErrorCode::MediaTooLarge);
    assert_eq!(
        answer.message,
        "input.video: decoding the video takes more than 60 seconds of CPU time, the limit of this server (media.max_decoder_seconds)"
    );
    let late = answered("input.video", MediaError::Abandoned);
    assert_eq!(late.code, ErrorCode::DeadlineExceeded);
}

#[test]
fn causes_lead_to_their_rows() {
    let reason = || "words".to_owned();
    let media = [
        (
            MediaError::InvalidSource { reason: reason() },
            ErrorCode::InvalidValue,
        ),
        (
            MediaError::Blocked { reason: reason() },
            ErrorCode::MediaUrlBlocked,
        ),
        (
            MediaError::FetchFailed { reason: reason() },
            ErrorCode::MediaFetchFailed,
        ),
        (
            MediaError::Unsupported { reason: reason() },
            ErrorCode::UnsupportedMedia,
        ),
        (
            MediaError::InvalidImage { reason: reason() },
            ErrorCode::InvalidImage,
        ),
        (
            MediaError::InvalidVideo { reason: reason() },
            ErrorCode::InvalidVideo,
        ),
    ];
    for (error, code) in media {
        let answer = answered("input[0].image", error);
        assert_eq!(
            (answer.code, answer.message.as_str()),
            (code, "input[0].image: words")
        );
        assert_eq!(answer.param.as_deref(), Some("input[0].image"));
    }
    let processor = |error, video| answered("input[0]", Cause::Processor { error, video }).code;
    let thin = || ProcessorError::AspectRatio {
        width: 1,
        height: 201,
        limit: 200,
    };
    assert_eq!(processor(thin(), false), ErrorCode::InvalidImage);
    assert_eq!(processor(thin(), true), ErrorCode::InvalidVideo);
    let few = ProcessorError::TooFewFrames {
        frames: 1,
        minimum: 2,
    };
    assert_eq!(processor(few, true), ErrorCode::InvalidVideo);
}

#[test]
fn a_key_that_has_spent_its_tokens_is_told_when_it_has_more_if_ever() {
    let spent = QuotaError::Spent {
        tokens: 9,
        limit: 10,
        retry_after: Duration::from_millis(1500),
    };
    let spent = answered("x", spent).into_response();
    assert_eq!(spent.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(spent.headers()["retry-after-ms"], "1500");
    assert_eq!(spent.headers().get("x-should-retry"), None);
    let never = answered(
        "x",
        QuotaError::TooMany {
            tokens: 11,
            limit: 10,
        },
    );
    assert_eq!(never.code, ErrorCode::RateLimitExceeded);
    assert_eq!(never.into_response().headers()["x-should-retry"], "false");
}

#[test]
fn what_the_queue_says_leads_to_its_row() {
    assert_eq!(
        answered("x", BatcherError::Draining).code,
        ErrorCode::Draining
    );
    assert_eq!(
        answered("x", BatcherError::Unavailable).code,
        ErrorCode::DeviceUnavailable
    );
    let late = BatcherError::TooLate {
        allowed: Duration::from_millis(5),
        retry_after: Duration::from_millis(1500),
    };
    let late = answered("x", late);
    assert_eq!(late.code, ErrorCode::QueueFull);
    assert_eq!(late.retry_after, Some(Duration::from_millis(1500)));
    assert_eq!(
        answered("x", BatcherError::TooManyPixels { limit: 5 }).code,
        ErrorCode::MediaTooLarge
    );
    assert_eq!(
        answered("x", BatcherError::Expired).code,
        ErrorCode::DeadlineExceeded
    );
    assert_eq!(
        answered("x", VectorError::NotFinite).code,
        ErrorCode::InternalError
    );
    let late = Cause::Deadline(Duration::from_millis(5));
    assert_eq!(answered("x", late).code, ErrorCode::DeadlineExceeded);
}

#[test]
fn limits_are_named_with_what_exceeds_them() {
    let long = ProcessorError::TooLong {
        at_least: false,
        tokens: 40_000,
        media_tokens: 7,
        limit: 32_768,
    };
    let answer = answered(
        "input[2]",
        Cause::Processor {
            error: long,
            video: false,
        },
    );
    assert_eq!(answer.code, ErrorCode::ContextLengthExceeded);
    let names_both = answer.message.contains("40000") && answer.message.contains("32768");
    assert!(names_both, "{}", answer.message);
    let large = MediaError::TooLarge {
        what: "the width in pixels",
        value: 20_000,
        limit: 16_384,
    };
    let answer = answered("input.image", large);
    assert_eq!(answer.code, ErrorCode::MediaTooLarge);
    let names_both = answer.message.contains("20000") && answer.message.contains("16384");
    assert!(names_both, "{}", answer.message);
}

#[test]
fn a_bad_token_id_is_named_by_its_place_in_the_array() {
    let error = ProcessorError::TokenId {
        position: 3,
        id: 9,
        reason: "is a special token".to_owned(),
    };
    let answer = answered(
        "input[1]",
        Cause::Processor {
            error,
            video: false,
        },
    );
    assert_eq!(answer.param.as_deref(), Some("input[1][3]"));
}

#[test]
fn a_full_queue_says_when_to_come_back_in_both_headers() {
    let answer = answered(
        "x",
        BatcherError::Overloaded {
            unit: "tokens",
            waiting: 9,
            limit: 10,
            retry_after: Duration::from_millis(1500),
        },
    );
    let response = answer.into_response();
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["retry-after-ms"], "1500");
}

#[test]
fn what_went_wrong_inside_stays_inside() {
    let secret = "0x7ffe";
    let errors = [
        answered(
            "input[0]",
            BatcherError::Failed(EngineError::Forward {
                reason: secret.to_owned(),
            }),
        ),
        answered(
            "input[0]",
            MediaError::Internal(std::io::Error::other(secret)),
        ),
        answered(
            "input[0]",
            Cause::Processor {
                error: ProcessorError::Tokenizer {
                    reason: secret.to_owned(),
                },
                video: false,
            },
        ),
    ];
    for error in errors {
        assert_eq!(error.code, ErrorCode::InternalError);
        assert!(!error.message.contains(secret), "{}", error.message);
    }
}

#[test]
fn an_input_that_fails_alone_is_not_worth_a_retry() {
    let failed = answered("input[0]", BatcherError::Failed(EngineError::Panicked));
    let response = failed.into_response();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(response.headers()["x-should-retry"], "false");
    let other = answered("input[0]", VectorError::NotFinite).into_response();
    assert_eq!(other.headers().get("x-should-retry"), None);
}
