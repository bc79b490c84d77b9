//! TEMP
mod naive_tmp;
pub use naive_tmp::Naive as CpuOps;
#[derive(Clone, Copy)]
pub struct CpuOptions {
    pub threads: usize,
    pub isa: Option<Isa>,
}
#[derive(Debug, Clone, Copy)]
pub enum Isa {
    Avx512,
    Avx2,
    Scalar,
}
impl Isa {
    pub fn is_available(self) -> bool {
        true
    }
}
impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
pub fn physical_cores() -> usize {
    2
}
