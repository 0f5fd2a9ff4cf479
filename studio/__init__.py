"""All that is known about Label Studio. Text and JSON in, our types out; client and pictures do the I/O."""
