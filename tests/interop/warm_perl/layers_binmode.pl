#!/usr/bin/perl
BEGIN { binmode STDOUT, ':utf8'; binmode STDIN; }
print chr(233), chr(0x20ac), "\n";
print join(",", map { join ":", PerlIO::get_layers($_) } *STDIN, *STDOUT), "\n";
