"""The wire: protobuf messages generated from protos/*.proto, and the codec of the hot ones.

`inference`, `grpc.health.v1`, `grpc.reflection.v1`, `grpc.reflection.v1alpha` and `anyserve.v1`
are named after their protobuf packages. None of it needs a gRPC library or Google's protobuf.
"""
