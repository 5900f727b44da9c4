"""CIFAR-10 missing, damaged or half downloaded; the downloads come from a real server on the loopback."""

import hashlib
import http.server
import shutil
import tarfile
import threading

import pytest
from torchvision.datasets import CIFAR10

import dataset
import train
from utils import cifar10
from utils.errors import UserError


def remove(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = [(remove, "data_batch_1"), (cut_short, "data_batch_5"), (change_a_byte, "data_batch_3")]
DAMAGES += [(change_a_byte, "test_batch"), (change_a_byte, "batches.meta")]


@pytest.fixture
def archive(small_cifar10, tmp_path, monkeypatch):
    """The archive of the small CIFAR-10, away from data/; torchvision is told its MD5 sum."""
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(small_cifar10, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def server(monkeypatch):
    """A server on the loopback; it answers the n-th request for the archive as `answers[n]` does, then as the last."""
    monkeypatch.setenv("no_proxy", "*")
    answers, requests = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            answers[min(len(requests), len(answers)) - 1](self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{http_server.server_port}/cifar-10-python.tar.gz"
        monkeypatch.setattr(cifar10, "MIRRORS", (address,))
        yield answers
        http_server.shutdown()
        thread.join()


def sends(content, length=None):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(length or len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def works():
    training, validation = dataset.load_training("cifar10", "data")
    return (len(training), len(validation), len(dataset.load_test("cifar10", "data"))) == (90, 10, 20)


@pytest.mark.parametrize("damage, name", DAMAGES)
def test_a_damaged_file_is_unpacked_again_where_the_archive_is_at_hand(small_cifar10, archive, server, name, damage):
    shutil.copy(archive, "data")
    damage(small_cifar10 / name)
    assert works()


@pytest.mark.parametrize("damage, name", DAMAGES)
def test_without_the_archive_a_damaged_file_is_a_line(small_cifar10, monkeypatch, name, damage):
    monkeypatch.setattr(cifar10, "MIRRORS", ("http://127.0.0.1:9/cifar-10-python.tar.gz",))
    damage(small_cifar10 / name)
    with pytest.raises(UserError, match="CIFAR-10 is not intact in data and cannot be downloaded") as caught:
        dataset.load_training("cifar10", "data")
    assert "\n" not in str(caught.value)


def test_a_home_folder_that_the_shell_left_to_the_program(archive, server, monkeypatch, tmp_path):
    shutil.rmtree("data")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    server.append(sends(archive.read_bytes()))
    options = "--data-dir=~/data --widths 4 --blocks 1 --epochs 1 --device cpu".split()
    assert train.main(options) == 0 and (tmp_path / "home/data" / CIFAR10.base_folder).is_dir()


def test_one_folder_for_data_and_checkpoints_is_no_trouble(archive, server):
    shutil.rmtree("data")
    server.append(sends(archive.read_bytes()))
    options = "--checkpoint-dir data --widths 4 --blocks 1 --epochs 1 --device cpu".split()
    assert train.main(options) == 0


def test_the_archive_is_downloaded_checked_and_unpacked(archive, server, capsys):
    shutil.rmtree("data")
    server.append(sends(archive.read_bytes()))
    assert works()
    assert "CIFAR-10 is not in data; taking it from 127.0.0.1" in capsys.readouterr().out


def test_an_html_page_in_place_of_the_archive_is_a_line_and_the_next_try_starts_clean(archive, server):
    shutil.rmtree("data")
    server.append(sends(b"<html>Service unavailable</html>"))
    with pytest.raises(UserError, match="cannot be downloaded.*corrupted"):
        works()
    server.append(sends(archive.read_bytes()))
    assert works()


def test_a_download_that_breaks_off_is_a_line_and_the_next_try_starts_clean(archive, server):
    shutil.rmtree("data")
    whole = archive.read_bytes()
    server.append(sends(whole[: len(whole) // 2], length=len(whole)))
    with pytest.raises(UserError, match="cannot be downloaded"):
        works()
    server.append(sends(whole))
    assert works()


def test_an_error_page_leads_to_the_next_server(archive, server, monkeypatch):
    shutil.rmtree("data")
    monkeypatch.setattr(cifar10, "MIRRORS", ("http://127.0.0.1:9/refused", *cifar10.MIRRORS, *cifar10.MIRRORS))
    server += [lambda handler: handler.send_error(503), sends(archive.read_bytes())]
    assert works()


def test_a_server_that_never_answers_is_given_up(archive, server, monkeypatch):
    shutil.rmtree("data")
    monkeypatch.setattr(cifar10, "DOWNLOAD_TIMEOUT", 0.2)
    released = threading.Event()
    server.append(lambda handler: released.wait(20))
    with pytest.raises(UserError, match="cannot be downloaded.*timed out"):
        works()
    released.set()


@pytest.mark.parametrize("name", ["data/cifar-10-batches-py", "."])
def test_of_a_folder_one_too_deep_or_too_high_the_right_one_is_named(small_cifar10, name):
    with pytest.raises(UserError, match=f"--data-dir {name}: name the folder that holds cifar-10-batches-py, .* data"):
        train.main(["--data-dir", name])
