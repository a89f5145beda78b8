"""Storage against a server that speaks S3 over HTTP."""

import os

import pytest
from object_store import BUCKET, KEY, SECRET, object_store

from pretrain import storage

MIB = 2**20


@pytest.fixture(scope="module")
def server():
    with object_store() as running:
        yield running


@pytest.fixture
def folder(server, request):
    return storage.place(f"s3://{BUCKET}/{request.node.name}")


def test_files_go_up_and_come_down_whole(folder):
    path = folder / "deep" / "a.bin"
    content = os.urandom(1000)
    for written in (b"first", content):
        with storage.writing(path) as temporary:
            temporary.write_bytes(written)
    assert path.read_bytes() == content
    with storage.local_file(path) as local:
        assert local.read_bytes() == content
    assert [str(item) for item in storage.list_folder(folder)] == [str(folder / "deep")]
    assert storage.is_file(path) and not storage.is_file(path.parent) and not storage.is_file(folder / "none")
    storage.move_file(path, folder / "b.bin")
    assert [item.name for item in storage.list_folder(folder)] == ["b.bin"]
    storage.remove_folder(folder)
    assert storage.list_folder(folder) == []


def test_what_another_process_wrote_is_seen_at_once(folder):
    import boto3

    assert storage.list_folder(folder) == [] and not storage.is_file(folder / "late")
    client = boto3.client("s3", endpoint_url=os.environ["FSSPEC_S3_ENDPOINT_URL"])
    client.put_object(Bucket=BUCKET, Key=f"{folder.name}/late", Body=b"x")
    assert storage.is_file(folder / "late") and [item.name for item in storage.list_folder(folder)] == [
        "late"
    ]


def test_large_files_pass_in_parts(folder):
    size = 120 * MIB
    with storage.writing(folder / "w.bin") as temporary, temporary.open("wb") as file:
        file.truncate(size)
    block = os.urandom(4 * MIB)
    with storage.uploading(folder / "u.bin") as stream:
        for _ in range(size // len(block)):
            stream.write(block)
    assert (folder / "u.bin").stat().st_size == (folder / "w.bin").stat().st_size == size
    with storage.reading(folder / "u.bin") as stream:
        stream.seek(size - len(block) - 7)
        assert stream.read() == block[-7:] + block


def test_a_failed_upload_leaves_nothing_and_the_old_stays(folder):
    import boto3

    with storage.writing(folder / "a.bin") as temporary:
        temporary.write_bytes(b"old")
    with pytest.raises(RuntimeError), storage.uploading(folder / "a.bin") as stream:
        stream.write(bytes(60 * MIB))  # a first part is sent
        raise RuntimeError("body")
    with pytest.raises(RuntimeError), storage.writing(folder / "b.bin") as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError("body")
    assert [item.name for item in storage.list_folder(folder)] == ["a.bin"] and (
        folder / "a.bin"
    ).read_bytes() == b"old"
    client = boto3.client("s3", endpoint_url=os.environ["FSSPEC_S3_ENDPOINT_URL"])
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")  # nor parts that are paid for


def test_a_missing_bucket_is_named(server):
    nowhere = storage.place("s3://nowhere/run")
    with pytest.raises(FileNotFoundError, match=r"^s3://nowhere/run: the bucket does not exist; create it"):
        storage.check_reachable(nowhere)
    with (
        pytest.raises(FileNotFoundError, match=r"^s3://nowhere/run/a: the bucket does not exist"),
        storage.writing(nowhere / "a") as path,
    ):
        path.write_text("x")
    storage.check_reachable(storage.place(f"s3://{BUCKET}/run"))


def test_a_store_that_went_away_is_named_and_never_taken_for_empty():
    with object_store() as server:
        path = storage.place(f"s3://{BUCKET}/gone/a.bin")
        with storage.writing(path) as temporary:
            temporary.write_bytes(b"old")
        server.stop()
        attempts = (
            lambda: storage.is_file(path),
            lambda: storage.list_folder(path.parent),
            lambda: storage.check_reachable(path),
            lambda: storage.remove_folder(path.parent),
        )
        for attempt in attempts:
            with pytest.raises(
                ConnectionError, match=r"the store does not answer .*FSSPEC_S3_ENDPOINT_URL"
            ) as caught:
                attempt()
            assert str(caught.value).startswith(f"s3://{BUCKET}/gone") and "\n" not in str(caught.value)
            assert KEY not in str(caught.value) and SECRET not in str(caught.value)
        server.start()
        assert storage.is_file(path)


def test_a_server_on_its_own_port_is_stopped_at_the_end():
    import socket

    with object_store() as server:
        port = server.port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
