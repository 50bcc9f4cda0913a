//! Errors as HIP answers them.

use std::fmt;

use cubecl_hip_sys as hip;

/// HIP's codes that the stand-in answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    InvalidValue = hip::hipError_t_hipErrorInvalidValue,
    OutOfMemory = hip::hipError_t_hipErrorOutOfMemory,
    NotInitialized = hip::hipError_t_hipErrorNotInitialized,
    InvalidConfiguration = hip::hipError_t_hipErrorInvalidConfiguration,
    InvalidPitchValue = hip::hipError_t_hipErrorInvalidPitchValue,
    InvalidMemcpyDirection = hip::hipError_t_hipErrorInvalidMemcpyDirection,
    InvalidDeviceFunction = hip::hipError_t_hipErrorInvalidDeviceFunction,
    NoDevice = hip::hipError_t_hipErrorNoDevice,
    InvalidDevice = hip::hipError_t_hipErrorInvalidDevice,
    InvalidImage = hip::hipError_t_hipErrorInvalidImage,
    NoBinaryForGpu = hip::hipError_t_hipErrorNoBinaryForGpu,
    OperatingSystem = hip::hipError_t_hipErrorOperatingSystem,
    InvalidResourceHandle = hip::hipError_t_hipErrorInvalidResourceHandle,
    NotFound = hip::hipError_t_hipErrorNotFound,
    IllegalAddress = hip::hipError_t_hipErrorIllegalAddress,
    LaunchFailure = hip::hipError_t_hipErrorLaunchFailure,
    NotSupported = hip::hipError_t_hipErrorNotSupported,
    StreamCaptureUnsupported = hip::hipError_t_hipErrorStreamCaptureUnsupported,
    StreamCaptureInvalidated = hip::hipError_t_hipErrorStreamCaptureInvalidated,
    CapturedEvent = hip::hipError_t_hipErrorCapturedEvent,
    IllegalState = hip::hipError_t_hipErrorIllegalState,
    Unknown = hip::hipError_t_hipErrorUnknown,
}

/// HIP's code, and the sentence that the code has no room for.
#[derive(Clone, Debug)]
pub struct Error {
    pub code: Code,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (hipError{:?})", self.message, self.code)
    }
}

/// Returns an error of a code and a formatted sentence.
macro_rules! refuse {
    ($code:ident, $($message:tt)*) => {
        return Err($crate::error::Error { code: $crate::error::Code::$code, message: format!($($message)*) })
    };
}
pub(crate) use refuse;
