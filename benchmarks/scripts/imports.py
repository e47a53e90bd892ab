#!/usr/bin/python3
"""A script as many are: fifteen modules of the standard library, then little work."""

import csv
import datetime
import decimal
import email.message
import hashlib
import html
import http.cookies
import json
import logging
import os
import re
import sqlite3
import subprocess
import urllib.parse
import urllib.request

USED = (csv, datetime, decimal, email.message, hashlib, html, http.cookies, json)
USED += (logging, os, re, sqlite3, subprocess, urllib.parse, urllib.request)

query = urllib.parse.parse_qs(os.environ.get("QUERY_STRING", ""))
name = html.escape(query.get("name", ["world"])[0])
print("Content-Type: text/html; charset=utf-8\r\n\r")
print(f"<!DOCTYPE html><title>{len(USED)} modules</title><p>Hello, {name}!")
