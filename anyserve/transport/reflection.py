"""`grpc.reflection` v1 and v1alpha: what the server serves, as descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from anyserve_protos.descriptors import ProtoFile, proto_files
from anyserve_protos.grpc.reflection import v1, v1alpha
from grpclib.const import Cardinality, Handler

from anyserve.errors import Status
from anyserve.transport.rpc import ServerStream, Service

_METHODS = {
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": v1,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": v1alpha,
}


class ReflectionService:
    """Describes other services, and itself."""

    def __init__(self, services: Iterable[Service]) -> None:
        paths = [path for service in services for path in service.__mapping__()]
        self._names = sorted({path.split("/")[1] for path in (*paths, *_METHODS)})
        self._files = proto_files()

    def __mapping__(self) -> Mapping[str, Handler]:
        """The same method in both versions of the protocol, whose messages are alike."""
        return {path: self._method(messages) for path, messages in _METHODS.items()}

    def _method(self, messages: ModuleType) -> Handler:
        async def info(stream: ServerStream) -> None:
            async for request in stream:
                await stream.send_message(self._answer(request, messages))

        return Handler(
            info,
            Cardinality.STREAM_STREAM,
            messages.ServerReflectionRequest,
            messages.ServerReflectionResponse,
        )

    def _answer(self, request: Any, messages: ModuleType) -> Any:
        response = messages.ServerReflectionResponse(
            valid_host=request.host, original_request=request
        )
        if request.list_services is not None:
            services = [messages.ServiceResponse(name=name) for name in self._names]
            response.list_services_response = messages.ListServiceResponse(service=services)
            return response
        file: ProtoFile | None = None
        if request.file_by_filename is not None:
            file = self._files.get(request.file_by_filename)
        elif request.file_containing_symbol is not None:
            file = self._declaring(request.file_containing_symbol)
        if file is not None:
            response.file_descriptor_response = messages.FileDescriptorResponse(
                file_descriptor_proto=[f.data for f in self._with_imports(file)]
            )
        else:
            response.error_response = messages.ErrorResponse(
                error_code=Status.NOT_FOUND, error_message="no such file, symbol or extension"
            )
        return response

    def _declaring(self, symbol: str) -> ProtoFile | None:
        return next((file for file in self._files.values() if symbol in file.symbols), None)

    def _with_imports(self, file: ProtoFile) -> list[ProtoFile]:
        """A file and all that it imports, each once."""
        found = {file.name: file}
        todo = [file]
        while todo:
            for name in todo.pop().imports:
                if name not in found:
                    found[name] = self._files[name]
                    todo.append(self._files[name])
        return list(found.values())
