"""All that is known about Label Studio: text and JSON in, our types out."""
