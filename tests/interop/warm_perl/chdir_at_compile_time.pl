#!/usr/bin/perl
use Cwd;
BEGIN { chdir "lib" or die }
use lib '.';
use Simple;
print getcwd(), " ", Simple::name(), "\n";
