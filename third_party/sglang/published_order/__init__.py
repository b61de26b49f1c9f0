"""Models that replace SGLang's own of the same name (SGLANG_EXTERNAL_MODEL_PACKAGE)."""
