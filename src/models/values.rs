//! [`Values`]: f32 values where a model computes, and what is made of such.

#[cfg(feature = "candle")]
use std::sync::Arc;

use cubecl::server::Handle;

use crate::kernels::decoder::attention::Attention;
use crate::kernels::decoder::norm::RmsNorm;
use crate::kernels::decoder::rotary::Rotary;

/// f32 values. A model's are all on its device or all on the host.
#[derive(Clone, Debug)]
pub(super) enum Values {
    Device(Handle),
    #[cfg(feature = "candle")]
    Host(Arc<Vec<f32>>),
}

impl Values {
    /// Those of a model on a device.
    pub fn handle(&self) -> &Handle {
        match self {
            Self::Device(handle) => handle,
            #[cfg(feature = "candle")]
            Self::Host(_) => unreachable!("a model on a device has no values on the host"),
        }
    }

    /// Those of a model on the host.
    #[cfg(feature = "candle")]
    pub fn slice(&self) -> &[f32] {
        match self {
            Self::Host(values) => values,
            Self::Device(_) => unreachable!("a model on the host has no values on a device"),
        }
    }
}

impl From<Handle> for Values {
    fn from(handle: Handle) -> Self {
        Self::Device(handle)
    }
}

#[cfg(feature = "candle")]
impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Self::Host(Arc::new(values))
    }
}

impl RmsNorm<Values> {
    /// What kernels take.
    pub(super) fn on_device(&self) -> RmsNorm {
        let Self { weight, width, epsilon } = self;
        RmsNorm { weight: weight.handle().clone(), width: *width, epsilon: *epsilon }
    }
}

impl Rotary<Values> {
    /// What kernels take.
    pub(super) fn on_device(&self) -> Rotary {
        let handle = |values: &Values| values.handle().clone();
        Rotary {
            heads: self.heads,
            bias: self.bias.as_ref().map(handle),
            norms: self.norms.as_ref().map(|(norms, epsilon)| (handle(norms), *epsilon)),
            scale: self.scale,
        }
    }
}

impl Attention<Values> {
    /// What kernels take.
    pub(super) fn on_device(&self) -> Attention {
        let Self { heads, window, softcap, sinks } = self;
        let sinks = sinks.as_ref().map(|sinks| sinks.handle().clone());
        Attention { heads: *heads, window: *window, softcap: *softcap, sinks }
    }
}
