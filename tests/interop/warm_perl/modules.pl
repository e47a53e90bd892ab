#!/usr/bin/perl
use strict; use warnings; use feature qw(say state signatures);
use List::Util qw(sum first shuffle); use Scalar::Util qw(blessed weaken); use Data::Dumper; use Time::Local;
use File::Temp qw(tempfile); use File::Path; use File::Find; use Encode; use JSON::PP; use Digest::MD5 qw(md5_hex);
use MIME::Base64; use Storable qw(dclone); use Text::Wrap; use Getopt::Long; use IO::File; use IO::Handle; use Socket; use Time::HiRes;
$Data::Dumper::Sortkeys = 1;
say sum(1 .. 10), " ", md5_hex("x"), " ", encode_base64("abc", ""), " ", JSON::PP->new->canonical->encode({ a => [1, "\x{e9}"] });
print Dumper({ b => 1, a => [2] }); say timegm(0, 0, 0, 1, 0, 100);
my ($fh, $name) = tempfile(UNLINK => 1); print $fh "x"; close $fh; say -s $name;
my $f = IO::File->new("made.txt", "w"); $f->print("made\n"); $f->close;
say wrap("", "  ", "some words to wrap " x 6);
sub plus ($x, $y = 2) { state $n = 0; $n++; $x + $y + $n } say plus(1), plus(1);
