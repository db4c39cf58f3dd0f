"""Audio in and out, in blocks: a song never has to fit in memory.

Read in this order: ``info`` (what a file says about itself), ``headers`` and ``ogg_pages`` (what should be in it),
``decode_soundfile`` and ``decode_av`` (bytes to samples), ``downmix``, ``resample``, ``blocks`` (samples that wait),
``read`` (a song as the model wants it), ``encode`` (samples to the bytes of a WAV file), ``compress`` (to those of
FLAC, Ogg Vorbis and MP3), ``tags``, ``write`` (one stem file, whole or not at all).

    >>> from mrsep_deploy.audio.read import AudioSource
    >>> from mrsep_deploy.audio.write import StemWriter
    >>> song = AudioSource("song.flac", sample_rate=44100, channels=2)      # doctest: +SKIP
    >>> with StemWriter("vocals.wav", 44100, 2) as stem:                    # doctest: +SKIP
    ...     for block in song.blocks():
    ...         stem.write(block)
"""
