"""What users import: collect, train, evaluate, load and connect, composed of the layers below."""
