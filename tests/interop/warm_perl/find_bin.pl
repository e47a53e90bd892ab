#!/usr/bin/perl
use FindBin; use Cwd; use File::Basename;
use lib "$FindBin::Bin/lib";
use Simple;
print "$FindBin::Bin $FindBin::Script ", cwd(), " ", basename($0), " ", Simple::name(), "\n";
