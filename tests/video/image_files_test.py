"""Stills of every kind: right values, upright, over white; what cannot be read is a typed error."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from paravt_jax.errors import MediaError
from paravt_jax.video import image_files

COLOUR = (200, 100, 50)
RAMP = np.tile(np.linspace(0, 65535, 64), (8, 1)).round().astype(np.uint16)
EIGHT = np.tile(np.linspace(0, 255, 64), (8, 1))


def pixel(image):
  return image_files.rgb(image)[0, 0].tolist()


@pytest.mark.parametrize(
  ('mode', 'value', 'wanted'),
  [
    ('1', 1, (255, 255, 255)),
    ('L', 90, (90, 90, 90)),
    ('LA', (90, 255), (90, 90, 90)),
    ('LA', (90, 0), (255, 255, 255)),
    ('La', (45, 128), (172, 172, 172)),
    ('La', (90, 255), (90, 90, 90)),
    ('RGB', COLOUR, COLOUR),
    ('RGBA', (*COLOUR, 255), COLOUR),
    ('RGBA', (*COLOUR, 0), (255, 255, 255)),
    ('RGBA', (0, 0, 0, 128), (127, 127, 127)),
    ('RGBa', (100, 50, 25, 128), (227, 177, 152)),
    ('RGBX', (*COLOUR, 0), COLOUR),
    ('CMYK', (55, 155, 205, 0), COLOUR),
    ('YCbCr', (124, 86, 182), COLOUR),
    ('HSV', (14, 191, 200), COLOUR),
    ('LAB', (138, 209, 198), (255, 0, 0)),
    ('I', 128, (128,) * 3),
    ('I', 32896, (128,) * 3),
    ('I;16', 32896, (128,) * 3),
    ('I;16L', 32896, (128,) * 3),
    ('I;16B', 32896, (128,) * 3),
    ('I;16N', 32896, (128,) * 3),
    ('F', 0.5, (128,) * 3),
    ('F', 90.0, (90,) * 3),
  ],
)
def test_a_pixel_of_every_mode_is_the_colour_that_it_stands_for(mode, value, wanted):
  got = pixel(Image.new(mode, (2, 2), value))
  assert max(abs(a - b) for a, b in zip(got, wanted)) <= 6, got


@pytest.mark.parametrize(
  ('mode', 'clear'), [('P', None), ('P', 1), ('P', b'\xff\x00'), ('PA', None)]
)
def test_a_palette_is_looked_up_and_what_it_makes_transparent_is_white(mode, clear):
  image = Image.new('P', (2, 1))
  image.putpalette([*COLOUR, 0, 0, 255])
  image.putdata([0, 1])
  if mode == 'PA':
    image = image.convert('PA')
    image.putpixel((1, 0), (1, 0))
  elif clear is not None:
    image.info['transparency'] = clear
  second = [0, 0, 255] if mode == 'P' and clear is None else [255, 255, 255]
  assert image_files.rgb(image).tolist() == [[list(COLOUR), second]]


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_sixteen_bits_span_black_to_white(name, tmp_path):
  Image.fromarray(RAMP).save(tmp_path / name)
  got = image_files.read(str(tmp_path / name))
  assert got.shape == (8, 64, 3) and np.abs(got[..., 0] - EIGHT).max() <= 1


def test_a_tiff_of_twelve_bits_says_so_and_is_as_bright(tmp_path):
  tags = [
    (256, 2),
    (257, 1),
    (258, 12),
    (259, 1),
    (262, 1),
    (273, 110),
    (277, 1),
    (279, 3),
  ]  # two pixels: 0x800, 0xFFF
  entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
  head = b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + struct.pack('<I', 0)
  (tmp_path / 'a.tif').write_bytes(head + b'\x80\x0f\xff')
  assert image_files.read(str(tmp_path / 'a.tif'))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize('kind', [2, 4, 6])
def test_deep_colour_pngs_are_read(kind, tmp_path):
  """Colour types 2, 4 and 6 at 16 bits; what is transparent is white."""
  values = {2: (0xC800, 0x6400, 0x3200), 4: (0x6400, 0xFFFF), 6: (0xC800, 0x6400, 0x3200, 0)}[kind]
  (tmp_path / 'a.png').write_bytes(png(kind, 16, struct.pack(f'>{len(values)}H', *values)))
  assert image_files.read(str(tmp_path / 'a.png')).tolist() == [
    [{2: [200, 100, 50], 4: [100] * 3, 6: [255] * 3}[kind]]
  ]


def test_a_colour_that_a_deep_png_calls_transparent_is_white(tmp_path):
  for kind, values in ((2, (0xC800, 0x6400, 0x3200)), (0, (0x6400,))):
    body = struct.pack(f'>{len(values)}H', *values)
    (tmp_path / 'a.png').write_bytes(png(kind, 16, body, body))
    assert image_files.read(str(tmp_path / 'a.png')).tolist() == [[[255, 255, 255]]]


def png(kind, bits, row, clear=None):
  """A PNG of one pixel."""
  chunk = lambda name, data: (
    struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
  )
  return b''.join(
    [
      b'\x89PNG\r\n\x1a\n',
      chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, bits, kind, 0, 0, 0)),
      chunk(b'tRNS', clear) if clear else b'',
      chunk(b'IDAT', zlib.compress(b'\0' + row)),
      chunk(b'IEND', b''),
    ]
  )


@pytest.mark.parametrize(
  ('values', 'wanted'),
  [
    ([0.0, 0.5, 1.0], [0, 128, 255]),
    ([0.0, 90.0, 255.0], [0, 90, 255]),
    ([-1.0, 0.0, 1.0], [0, 128, 255]),
    ([0.0, 500.0, 1000.0], [0, 128, 255]),
    ([float('nan'), 0.5, 1.0], [0, 128, 255]),
    ([0.5, 1.0, float('inf')], [128, 255, 255]),
    ([float('nan')] * 3, [0, 0, 0]),
  ],
)
def test_floats_are_shares_bytes_or_stretched(values, wanted):
  assert (
    image_files.rgb(Image.fromarray(np.array([values], np.float32)))[0, :, 0].tolist() == wanted
  )


@pytest.mark.parametrize(
  ('values', 'wanted'),
  [
    ([0, 90, 255], [0, 90, 255]),
    ([0, 32896, 65535], [0, 128, 255]),
    ([-32768, 0, 32767], [0, 128, 255]),
    ([0, 500_000, 1_000_000], [0, 128, 255]),
  ],
)
def test_integers_are_bytes_sixteen_bits_or_stretched(values, wanted):
  assert image_files.rgb(Image.fromarray(np.array([values], np.int32)))[0, :, 0].tolist() == wanted


ARROW = np.zeros((32, 64, 3), np.uint8)
ARROW[:16, :16] = 255  # upper left
STORED = {
  1: ARROW,
  2: ARROW[:, ::-1],
  3: ARROW[::-1, ::-1],
  4: ARROW[::-1],
  5: ARROW.transpose(1, 0, 2),
  6: np.rot90(ARROW, 1),
  7: ARROW[::-1, ::-1].transpose(1, 0, 2),
  8: np.rot90(ARROW, -1),
}


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['jpeg', 'png', 'tiff', 'webp'])
def test_pictures_stand_upright_whatever_their_exif_orientation(kind, orientation, tmp_path):
  image, exif = Image.fromarray(np.ascontiguousarray(STORED[orientation])), Image.Exif()
  exif[0x0112] = orientation
  path = str(tmp_path / f'a.{kind}')
  image.save(path, kind, exif=exif)
  got = image_files.read(path)
  assert got.shape == ARROW.shape and np.abs(got.astype(int) - ARROW).mean() < 4
  height, width = image_files.size(path)
  assert {height, width} == {32, 64} and ((height, width) == (32, 64) or kind == 'png')


@pytest.mark.parametrize('exif', [b'Exif\0\0MM\0*\xff\xff\xff\xff', b'Exif\0\0junk'])
def test_a_broken_exif_block_leaves_the_picture_as_it_is_stored(exif, tmp_path):
  Image.fromarray(ARROW).save(tmp_path / 'a.jpg', exif=exif)
  assert (
    image_files.read(str(tmp_path / 'a.jpg')).shape
    == ARROW.shape
    == (*image_files.size(str(tmp_path / 'a.jpg')), 3)
  )


@pytest.mark.parametrize('kind', ['gif', 'png', 'webp'])
def test_of_an_animation_the_first_picture_counts(kind, tmp_path):
  first, second = Image.new('RGB', (32, 32), (255, 0, 0)), Image.new('RGB', (32, 32), (0, 0, 255))
  first.save(tmp_path / f'a.{kind}', save_all=True, append_images=[second], duration=100)
  assert image_files.read(str(tmp_path / f'a.{kind}'))[5, 5].tolist() == pytest.approx(
    [255, 0, 0], abs=3
  )


def test_a_cmyk_jpeg_has_its_colours(tmp_path):
  Image.new('CMYK', (16, 16), (55, 155, 205, 0)).save(tmp_path / 'a.jpg', quality=95)
  assert image_files.read(str(tmp_path / 'a.jpg'))[8, 8].tolist() == pytest.approx(COLOUR, abs=6)


@pytest.mark.parametrize('kind', ['jpeg', 'png', 'gif', 'tiff', 'webp', 'bmp'])
def test_half_a_file_is_a_typed_error(kind, tmp_path):
  held = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(held, kind)
  (tmp_path / 'a').write_bytes(held.getvalue()[: len(held.getvalue()) // 2])
  with pytest.raises(MediaError, match='cannot be read as an image') as error:
    image_files.read(str(tmp_path / 'a'))
  assert error.value.reason == 'decode'


def test_a_picture_of_too_many_pixels_is_a_typed_error(tmp_path, monkeypatch):
  Image.new('L', (64, 64)).save(tmp_path / 'a.png')
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
  with warnings.catch_warnings(), pytest.raises(MediaError, match='decompression bomb') as error:
    warnings.simplefilter('error')
    image_files.read(str(tmp_path / 'a.png'))
  assert error.value.reason == 'decode'


def test_what_is_not_there_or_no_image_is_named(tmp_path):
  (tmp_path / 'a').write_bytes(b'no image')
  for path, reason in (
    (tmp_path / 'gone', 'missing'),
    (tmp_path / 'a', 'decode'),
    (tmp_path, 'decode'),
  ):
    with pytest.raises(MediaError) as error:
      image_files.size(str(path))
    assert error.value.reason == reason


def test_a_deep_tiff_whose_white_is_zero_is_not_shown_as_a_negative(tmp_path):
  path = tmp_path / 'negative.tif'
  Image.fromarray(np.array([[0, 65535, 16384]], np.uint16)).save(path)
  black_is_zero, white_is_zero = (struct.pack('<HHIHH', 262, 3, 1, value, 0) for value in (1, 0))
  data = path.read_bytes()
  assert data.count(black_is_zero) == 1
  path.write_bytes(data.replace(black_is_zero, white_is_zero))
  assert image_files.read(str(path))[0, :, 0].tolist() == [255, 0, 191]
